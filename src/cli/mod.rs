//! The command line: one file a subcommand. Turns errors into messages and exit codes.

pub fn main(args: std::env::ArgsOs) -> std::process::ExitCode {
    let _ = args;
    todo!()
}
