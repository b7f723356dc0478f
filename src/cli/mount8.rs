//! Called by mount(8) and umount(8) as `/sbin/mount.fuse.envelopefs` or `/sbin/umount.fuse.envelopefs` (links to this
//! program): their fixed arguments become ours.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// The command line that was meant, or `None` where the program was called by its own name.
/// mount.TYPE: `SOURCE DIR [-sfnv] [-N NS] [-o OPTIONS] [-t TYPE]`; umount.TYPE: `DIR [-flnrv] [-N NS] [-t TYPE]`.
pub fn translate(args: &[OsString]) -> Result<Option<Vec<OsString>>, String> {
    let Some(name) = args.first().and_then(|a| Path::new(a).file_name()).and_then(OsStr::to_str) else {
        return Ok(None);
    };
    let command = match name {
        "mount.fuse.envelopefs" | "mount.envelopefs" => "mount",
        "umount.fuse.envelopefs" | "umount.envelopefs" => "umount",
        _ => return Ok(None),
    };
    let mut out: Vec<OsString> = vec!["envelopefs".into(), command.into()];
    let mut places = Vec::new();
    let mut rest = args.iter().skip(1);
    while let Some(arg) = rest.next() {
        let mut value = |flag: &str| rest.next().cloned().ok_or_else(|| format!("{flag} needs a value"));
        match arg.to_str() {
            Some("-o") => {
                let list = value("-o")?;
                if command == "mount" {
                    out.extend(["-o".into(), list]);
                }
            }
            Some("-t") => drop(value("-t")?),
            Some("-N") => return Err("mount namespaces (-N) are not supported; use nsenter".into()),
            Some("-l") if command == "umount" => {
                return Err("a lazy unmount loses track of the last commit; use umount -i -l".into());
            }
            Some(flags) if flags.starts_with('-') && flags.len() > 1 => {
                let known = if command == "mount" { "snv" } else { "nrvf" };
                if let Some(other) = flags.chars().skip(1).find(|c| !known.contains(*c)) {
                    return Err(format!("unknown flag -{other}"));
                }
                if command == "umount" && flags.contains('f') {
                    out.push("--force".into());
                }
            }
            _ => places.push(arg.clone()),
        }
    }
    out.push("--".into());
    out.extend(places);
    Ok(Some(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(args: &[&str]) -> Result<Option<String>, String> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        Ok(translate(&args)?.map(|out| out.join(OsStr::new(" ")).into_string().unwrap()))
    }

    #[test]
    fn the_own_name_is_left_alone() {
        assert_eq!(translated(&["envelopefs", "mount", "a", "b"]), Ok(None));
        assert_eq!(translated(&[]), Ok(None));
    }

    #[test]
    fn mount_and_umount_helpers() {
        assert_eq!(
            translated(&["/sbin/mount.fuse.envelopefs", "/c", "/m", "-s", "-o", "rw,noatime", "-t", "fuse.envelopefs"]),
            Ok(Some("envelopefs mount -o rw,noatime -- /c /m".into()))
        );
        assert_eq!(
            translated(&["/sbin/umount.fuse.envelopefs", "/m", "-vf"]),
            Ok(Some("envelopefs umount --force -- /m".into()))
        );
        assert!(translated(&["mount.fuse.envelopefs", "/c", "/m", "-N", "1"]).is_err());
        assert!(translated(&["mount.fuse.envelopefs", "/c", "/m", "-o"]).is_err());
        assert!(translated(&["mount.fuse.envelopefs", "/c", "/m", "-Z"]).is_err());
    }
}
