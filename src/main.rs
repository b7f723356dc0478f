//! Entry point: arguments in, exit code out. Knows nothing but `cli`.

fn main() -> std::process::ExitCode {
    envelopefs::cli::main(std::env::args_os())
}
