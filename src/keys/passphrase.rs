//! Where a passphrase comes from: terminal, file or descriptor; never the command line or the environment.

use zeroize::Zeroizing;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PassphraseSource {
    /// Prompt on the controlling terminal, without echo.
    Terminal,
    File(std::path::PathBuf),
    Descriptor(i32),
}

impl PassphraseSource {
    /// One line, without its newline. `confirm` asks twice on a terminal.
    pub fn read(&self, prompt: &str, confirm: bool) -> Result<Zeroizing<Vec<u8>>, super::KeyError> {
        let _ = (prompt, confirm);
        todo!()
    }
}
