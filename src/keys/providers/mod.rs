//! The registry of CMK providers: one arm and one file each. Knows how to open them, nothing of policy around their calls.

use std::{sync::Arc, time::Duration};

use super::passphrase::{PassphraseReader, PassphraseSource};
use super::uri::{CmkAddress, CmkUri};
use super::{CmkProvider, KeyError};

#[cfg(feature = "aws")]
pub mod aws;
#[cfg(feature = "k8s")]
pub mod k8s;
pub mod keyfile;
pub(crate) mod keyfile_document;
pub mod lazy;
#[cfg(feature = "pkcs11")]
pub mod pkcs11;
#[cfg(feature = "vault")]
pub mod vault;

/// Default time limit of a whole operation on a remote provider.
pub const KMS_DEADLINE: Duration = Duration::from_secs(5);

/// What opening a CMK may need beside its URI.
pub struct Opening<'a> {
    /// Read only where the key is sealed under one.
    pub passphrase: PassphraseReader<'a>,
    /// How long one call to a remote provider may take at most, the opening itself included.
    pub timeout: Duration,
}

impl<'a> Opening<'a> {
    pub fn new(passphrase: &'a PassphraseSource, timeout: Duration) -> Self {
        Self { passphrase: PassphraseReader::new(passphrase), timeout }
    }
}

/// The CMK behind one URI, ready to use.
pub fn open_cmk(uri: &CmkUri, opening: &mut Opening<'_>) -> Result<Arc<dyn CmkProvider>, KeyError> {
    match &uri.address {
        CmkAddress::Keyfile(keyfile) => Ok(Arc::new(keyfile::KeyfileCmk::open_with(
            &keyfile.path,
            keyfile.key.as_deref(),
            &mut opening.passphrase,
        )?)),
        #[cfg(feature = "aws")]
        CmkAddress::Aws(key) => Ok(Arc::new(aws::AwsCmk::open(key, opening)?)),
        #[cfg(feature = "vault")]
        CmkAddress::Vault(key) => Ok(Arc::new(vault::VaultCmk::open(key, opening)?)),
        #[cfg(feature = "pkcs11")]
        CmkAddress::Pkcs11(key) => Ok(Arc::new(pkcs11::Pkcs11Cmk::open(key, opening)?)),
        #[cfg(feature = "k8s")]
        CmkAddress::K8s(plugin) => Ok(Arc::new(k8s::K8sCmk::open(plugin, opening)?)),
        #[allow(unreachable_patterns)] // With every feature on, nothing is left.
        _ => Err(KeyError::Config(format!(
            "CMK URI {uri}: this build of envelopefs was made without that provider (cargo features aws, vault, pkcs11, k8s)"
        ))),
    }
}

/// All of a volume's CMKs in the order given. A terminal is asked per sealed key; a file or descriptor is read once and
/// serves all of them. The same key twice is an error: it would look like two ways to open a file and be one.
pub fn open_cmks(uris: &[CmkUri], opening: &mut Opening<'_>) -> Result<Vec<Arc<dyn CmkProvider>>, KeyError> {
    let mut cmks: Vec<Arc<dyn CmkProvider>> = Vec::with_capacity(uris.len());
    for uri in uris {
        let cmk = open_cmk(uri, opening)?;
        if cmks.iter().any(|other| other.key_ref() == cmk.key_ref()) {
            return Err(KeyError::Config(format!("CMK {} is given twice (second time as {uri})", cmk.key_ref())));
        }
        cmks.push(cmk);
    }
    Ok(cmks)
}
