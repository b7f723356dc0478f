//! Mount options on the command line: `-o` lists, and each word as `--word`. The table of words is in `config`.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::config::{MountOptions, OptionError, Value, WORDS};

/// The id of `-o`; no word is called so.
const LIST: &str = "options";
/// Stands for the value of a word that was typed without one.
const BARE: &str = "\0";
const HEADING: &str = "Mount options (each as --WORD or -o WORD)";

/// Mount options in the order in which they were typed: the last one wins.
#[derive(Debug)]
pub struct OptionWords(MountOptions);

impl OptionWords {
    pub fn into_inner(self) -> MountOptions {
        self.0
    }
}

impl Args for OptionWords {
    fn augment_args(command: Command) -> Command {
        let list = Arg::new(LIST)
            .short('o')
            .value_name("OPTS")
            .action(ArgAction::Append)
            .help("Mount options, separated by commas; a comma in a value is written \\,");
        WORDS.iter().fold(command.arg(list), |command, word| {
            let dashed = word.name.replace('_', "-");
            let mut arg = Arg::new(word.name).long(dashed.clone()).help(word.help).help_heading(HEADING);
            if dashed != word.name {
                arg = arg.alias(word.name);
            }
            command.arg(match word.value {
                Value::None => arg.action(ArgAction::SetTrue).overrides_with(word.name).hide(word.help.is_empty()),
                Value::Required(what) => arg.action(ArgAction::Append).value_name(what),
                // Without "=" the next word is the encrypted directory.
                Value::Optional(what) => arg
                    .action(ArgAction::Append)
                    .value_name(what)
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value(BARE),
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for OptionWords {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        // (position, text, whether it is a list)
        let mut typed: Vec<(usize, String, bool)> = Vec::new();
        if let (Some(lists), Some(at)) = (matches.get_many::<String>(LIST), matches.indices_of(LIST)) {
            typed.extend(at.zip(lists).map(|(at, list)| (at, list.clone(), true)));
        }
        for word in WORDS {
            if matches.value_source(word.name) != Some(ValueSource::CommandLine) {
                continue;
            }
            let at = matches.indices_of(word.name).into_iter().flatten();
            match word.value {
                Value::None => typed.extend(at.map(|at| (at, word.name.to_string(), false))),
                Value::Required(_) | Value::Optional(_) => {
                    let values = matches.get_many::<String>(word.name).into_iter().flatten();
                    let text = |value: &String| match value.as_str() {
                        BARE => word.name.to_string(),
                        value => format!("{}={value}", word.name),
                    };
                    typed.extend(at.zip(values).map(|(at, value)| (at, text(value), false)));
                }
            }
        }
        typed.sort_by_key(|(at, ..)| *at);
        let wrong = |e: OptionError| clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("{e}\n"));
        let mut options = MountOptions::default();
        for (_, text, is_list) in &typed {
            if *is_list { options.parse(text) } else { options.apply(text) }.map_err(wrong)?;
        }
        options.check().map_err(wrong)?;
        Ok(Self(options))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::WaitForKms;

    fn parse(args: &[&str]) -> Result<MountOptions, String> {
        let command = OptionWords::augment_args(Command::new("mount").arg(Arg::new("place").num_args(0..)));
        let matches = command.try_get_matches_from([&["mount"], args].concat()).map_err(|e| e.to_string())?;
        OptionWords::from_arg_matches(&matches).map(OptionWords::into_inner).map_err(|e| e.to_string())
    }

    #[test]
    fn words_and_lists_mix_in_the_order_typed() {
        assert!(parse(&["--ro"]).unwrap().read_only);
        assert!(!parse(&["--ro", "-o", "noatime,rw"]).unwrap().read_only);
        assert!(parse(&["-o", "rw", "a", "--ro", "b"]).unwrap().read_only);
        assert!(parse(&["--ro", "--rw", "--ro"]).unwrap().read_only);
        assert_eq!(parse(&["--commit", "9", "-o", "commit=7"]).unwrap().commit, Duration::from_secs(7));
        assert_eq!(parse(&["-o", "commit=7", "--commit=9"]).unwrap().commit, Duration::from_secs(9));
    }

    #[test]
    fn underscores_and_dashes_are_the_same() {
        for form in [&["--trust-first-use"][..], &["--trust_first_use"], &["-o", "trust_first_use"]] {
            assert!(parse(form).unwrap().trust_first_use, "{form:?}");
        }
        assert_eq!(parse(&["--metadata-timeout=0"]).unwrap().metadata_timeout, Some(Duration::ZERO));
        assert_eq!(parse(&["--metadata_timeout", "1"]).unwrap().metadata_timeout, Some(Duration::from_secs(1)));
    }

    #[test]
    fn cmks_add_up_and_keep_their_commas() {
        let options = parse(&["--cmk", "keyfile:a,b", "-ocmk=keyfile:c", "--cmk=keyfile:d"]).unwrap();
        assert_eq!(options.cmks, ["keyfile:a,b", "keyfile:c", "keyfile:d"]);
    }

    #[test]
    fn a_value_may_be_left_out() {
        let waits = |args: &[&str]| parse(args).unwrap().wait_for_kms;
        let minute = WaitForKms::AtMost(Duration::from_secs(60));
        assert_eq!(waits(&["a", "b"]), WaitForKms::No);
        assert_eq!(waits(&["--wait-for-kms", "a", "b"]), WaitForKms::Forever);
        assert_eq!(waits(&["--wait-for-kms=1m", "a", "b"]), minute);
        assert_eq!(waits(&["--wait_for_kms=1m", "--wait-for-kms", "a"]), WaitForKms::Forever);
        assert_eq!(waits(&["--wait-for-kms", "-o", "ro,wait_for_kms=1m"]), minute);
        assert!(parse(&["--wait-for-kms="]).unwrap_err().contains("has no value"));
        assert!(parse(&["--kms-max-stale", "1m"]).unwrap_err().contains("shorter than kms_revalidate"));
    }

    #[test]
    fn complaints_come_through() {
        assert!(parse(&["-o", "nonsense"]).unwrap_err().contains("unknown option \"nonsense\"; known: ro, rw"));
        assert!(parse(&["--commit", "0"]).unwrap_err().contains("between 1 second and 1 hour"));
        assert!(parse(&["-o", "plaintext_names"]).unwrap_err().contains("envelopefs init --plaintext-names"));
    }
}
