//! CMK URIs: text to a typed address. Knows the syntax of each provider, opens none.

/// A parsed CMK URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CmkUri {
    /// `keyfile:///etc/envelopefs/cmk.json`, `keyfile:relative/path`, optional `?key=ID`; `$CREDENTIALS_DIRECTORY` may stand in front.
    Keyfile { path: std::path::PathBuf, key: Option<String> },
}

impl CmkUri {
    /// The error names the schemes this build knows.
    pub fn parse(text: &str) -> Result<Self, super::KeyError> {
        let _ = text;
        todo!()
    }
}

impl std::fmt::Display for CmkUri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let _ = f;
        todo!()
    }
}
