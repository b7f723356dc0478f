//! AWS KMS as a CMK provider. Knows the operations and what they answer; nothing of policy around calls.
//!
//! Secrets: what the SDK hands out is moved into wiped memory and its copy is wiped. The SDK's own buffers on the way (the
//! JSON and base64 of one answer, or of one request of `wrap`; TLS records) are freed without being wiped, and nothing
//! outside of the SDK can change that; the process's locked memory and disabled core dumps are what covers them.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use aws_sdk_kms::Client;
use aws_sdk_kms::operation::describe_key::DescribeKeyOutput;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{EncryptionAlgorithmSpec, KeySpec, KeyState, KeyUsageType};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::Opening;
use crate::crypto::{kdf::mac_eq, secret::Secret32};
use crate::keys::uri::{AwsAlgorithm, AwsKey, AwsUri};
use crate::keys::{CmkInfo, CmkProvider, CmkState, EncryptionContext, KeyError, KeyRef};

mod connection;
mod errors;

use connection::Connection;
use errors::{Call, Failure, Kind, failure, printable};

/// The name that headers record.
pub const PROVIDER: &str = "awskms";

/// The service's limit of a ciphertext blob, in bytes.
const MAX_BLOB: usize = 6144;

/// RSA has no encryption context at AWS. What is encrypted is therefore the key and this label's and the canonical context's
/// SHA-256, 64 bytes, and `unwrap` compares. It keeps blobs of one context from being taken for another's; it proves nothing
/// about who wrapped, as anybody with the public key can: the header's commitment and origin tag do that.
const RSA_CONTEXT: &[u8] = b"envelopefs awskms RSA encryption context v1";

pub struct AwsCmk {
    key_ref: KeyRef,
    algorithm: AwsAlgorithm,
    connection: Arc<Connection>,
    /// The first blob that this CMK made or opened.
    good: OnceLock<Arc<Wrapped>>,
}

impl AwsCmk {
    /// A key ARN asks nobody. A key id or alias takes one DescribeKey, which tells the ARN.
    pub fn open(uri: &AwsUri, opening: &mut Opening<'_>) -> Result<Self, KeyError> {
        let shown = uri.to_string();
        let connection = Connection::open(uri, opening.timeout).map_err(|failure| failure.named(&shown))?;
        let key = match &uri.key {
            AwsKey::Arn(arn) => arn.clone(),
            AwsKey::Name(name) => describe(&connection, name)
                .and_then(|found| found.usable(uri, connection.region()))
                .map_err(|failure| failure.named(&shown))?,
        };
        Ok(Self {
            key_ref: KeyRef { provider: PROVIDER.into(), key },
            algorithm: uri.algorithm,
            connection,
            good: OnceLock::new(),
        })
    }

    fn failed(&self, failure: Failure) -> KeyError {
        failure.named(&self.key_ref.key)
    }

    fn encrypt(&self, plaintext: Zeroizing<Vec<u8>>, context: &EncryptionContext) -> Result<Vec<u8>, Failure> {
        let (key, algorithm) = (self.key_ref.key.clone(), self.algorithm);
        let context = service_context(algorithm, context);
        let plaintext = Arc::new(plaintext);
        self.connection.call(move |client| {
            let request = client
                .encrypt()
                .key_id(&key)
                .set_encryption_context(context.clone())
                .encryption_algorithm(service_algorithm(algorithm))
                .plaintext(Blob::new(plaintext.to_vec()));
            let key = key.clone();
            async move {
                let answer = request.send().await.map_err(|e| failure(&e, Call::Encrypt))?;
                of_this_key(answer.key_id(), &key)?;
                blob(answer.ciphertext_blob)
            }
        })
    }

    /// The plaintext, of whatever size.
    fn decrypt(&self, blob: &[u8], context: &EncryptionContext) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let (key, algorithm) = (self.key_ref.key.clone(), self.algorithm);
        self.with_blob(blob, context, move |client, wrapped| {
            let request = client
                .decrypt()
                // Without it any key of any account that this host may use would do.
                .key_id(&key)
                .set_encryption_context(wrapped.context.clone())
                .encryption_algorithm(service_algorithm(algorithm))
                .ciphertext_blob(Blob::new(wrapped.blob.clone()));
            let key = key.clone();
            async move {
                let answer = request.send().await.map_err(|e| failure(&e, Call::Decrypt))?;
                let plaintext = wiped(answer.plaintext);
                of_this_key(answer.key_id.as_deref(), &key)?;
                plaintext.ok_or_else(|| garbage("Decrypt without a plaintext"))
            }
        })
    }

    /// One call about a blob. The service judges a blob by the key that the blob names, and says "denied" of one that it does
    /// not find there: whoever writes files could so make this CMK look revoked. A refusal therefore counts if a blob that
    /// this CMK certainly made is refused as well; only then, and only where there is one, a second request is sent.
    fn with_blob<T, Answer>(
        &self,
        blob: &[u8],
        context: &EncryptionContext,
        ask: impl Fn(Client, Arc<Wrapped>) -> Answer + Send + Sync + 'static,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        Answer: Future<Output = Result<T, Failure>> + Send,
    {
        check_size(blob)?;
        let asked = Arc::new(Wrapped { blob: blob.to_vec(), context: service_context(self.algorithm, context) });
        let good = self.good.get().filter(|good| good.blob != asked.blob).cloned();
        let ask = Arc::new(ask);
        let subject = asked.clone();
        let result = self.connection.call(move |client| {
            let (ask, asked, good) = (ask.clone(), asked.clone(), good.clone());
            async move {
                let refusal = match ask(client.clone(), asked).await {
                    Err(failure) if failure.kind == Kind::Refused && !failure.credentials => failure,
                    other => return other,
                };
                let Some(good) = good else { return Err(refusal) };
                match ask(client, good).await {
                    Ok(_) => {
                        let reason = format!("not a blob of this CMK, whose others are opened ({})", refusal.reason);
                        Err(Failure::new(Kind::BadBlob, reason))
                    }
                    Err(failure) if failure.kind == Kind::Refused => Err(refusal),
                    Err(failure) => Err(failure),
                }
            }
        });
        if result.is_ok() {
            self.good.get_or_init(|| subject);
        }
        result
    }

    fn remember(&self, blob: &[u8], context: &EncryptionContext) {
        self.good.get_or_init(|| {
            Arc::new(Wrapped { blob: blob.to_vec(), context: service_context(self.algorithm, context) })
        });
    }
}

/// A blob and the encryption context of the call that it goes into.
struct Wrapped {
    blob: Vec<u8>,
    context: Option<HashMap<String, String>>,
}

impl CmkProvider for AwsCmk {
    fn key_ref(&self) -> &KeyRef {
        &self.key_ref
    }

    fn generate(&self, context: &EncryptionContext) -> Result<(Secret32, Vec<u8>), KeyError> {
        if self.algorithm == AwsAlgorithm::Rsa {
            let key = Secret32::random();
            let blob = self.wrap(&key, context)?;
            return Ok((key, blob));
        }
        let key = self.key_ref.key.clone();
        let service = service_context(self.algorithm, context);
        let (secret, blob) = self
            .connection
            .call(move |client| {
                let request =
                    client.generate_data_key().key_id(&key).number_of_bytes(32).set_encryption_context(service.clone());
                let key = key.clone();
                async move {
                    let answer = request.send().await.map_err(|e| failure(&e, Call::GenerateDataKey))?;
                    let plaintext = wiped(answer.plaintext);
                    of_this_key(answer.key_id.as_deref(), &key)?;
                    let blob = blob(answer.ciphertext_blob)?;
                    let secret = plaintext.and_then(|bytes| secret(&bytes));
                    Ok((secret.ok_or_else(|| garbage("GenerateDataKey without a key of 32 bytes"))?, blob))
                }
            })
            .map_err(|failure| self.failed(failure))?;
        self.remember(&blob, context);
        Ok((secret, blob))
    }

    fn wrap(&self, key: &Secret32, context: &EncryptionContext) -> Result<Vec<u8>, KeyError> {
        let mut plaintext = Zeroizing::new(Vec::with_capacity(64));
        plaintext.extend_from_slice(key.expose());
        if self.algorithm == AwsAlgorithm::Rsa {
            plaintext.extend_from_slice(&rsa_context(context));
        }
        let blob = self.encrypt(plaintext, context).map_err(|failure| self.failed(failure))?;
        self.remember(&blob, context);
        Ok(blob)
    }

    fn unwrap(&self, blob: &[u8], context: &EncryptionContext) -> Result<Secret32, KeyError> {
        let bytes = self.decrypt(blob, context).map_err(|failure| self.failed(failure))?;
        let bad = |reason: &str| self.failed(Failure::new(Kind::BadBlob, reason));
        let key = match self.algorithm {
            AwsAlgorithm::Symmetric => bytes.as_slice(),
            AwsAlgorithm::Rsa => match bytes.split_at_checked(32) {
                Some((key, tag)) if mac_eq(tag, &rsa_context(context)) => key,
                _ => return Err(bad("wrapped under another encryption context, or not by envelopefs")),
            },
        };
        secret(key).ok_or_else(|| bad("it holds something other than a key of 32 bytes"))
    }

    /// ReEncrypt checks the context, which an RSA key has not: there, unwrap and wrap do it.
    fn rewrap(&self, old: &[u8], context: &EncryptionContext) -> Result<Option<Vec<u8>>, KeyError> {
        if self.algorithm == AwsAlgorithm::Rsa {
            return Ok(None);
        }
        let key = self.key_ref.key.clone();
        let result = self.with_blob(old, context, move |client, wrapped| {
            let request = client
                .re_encrypt()
                .source_key_id(&key)
                .set_source_encryption_context(wrapped.context.clone())
                .destination_key_id(&key)
                .set_destination_encryption_context(wrapped.context.clone())
                .ciphertext_blob(Blob::new(wrapped.blob.clone()));
            let key = key.clone();
            async move {
                let answer = request.send().await.map_err(|e| failure(&e, Call::ReEncrypt))?;
                of_this_key(answer.key_id(), &key)?;
                blob(answer.ciphertext_blob)
            }
        });
        match result {
            Ok(new) => Ok(Some(new)),
            // A compatible service that has no such operation.
            Err(failure) if failure.kind == Kind::NoOperation => Ok(None),
            Err(failure) => Err(self.failed(failure)),
        }
    }

    fn describe(&self) -> Result<CmkInfo, KeyError> {
        let described = describe(&self.connection, &self.key_ref.key).map_err(|failure| self.failed(failure))?;
        of_this_key(Some(&described.arn), &self.key_ref.key).map_err(|failure| self.failed(failure))?;
        let state = described.state.map_err(|failure| self.failed(failure))?;
        let Described { description, created, .. } = described;
        Ok(CmkInfo { key: self.key_ref.clone(), state, description, created })
    }
}

/// What DescribeKey told.
struct Described {
    arn: String,
    state: Result<CmkState, Failure>,
    spec: KeySpec,
    usage: KeyUsageType,
    description: String,
    created: Option<i64>,
}

impl Described {
    fn from_answer(answer: DescribeKeyOutput) -> Option<Self> {
        let key = answer.key_metadata?;
        Some(Self {
            arn: key.arn?,
            state: match key.key_state? {
                // The primary of a multi-region key is being moved; it works meanwhile.
                KeyState::Enabled | KeyState::Updating => Ok(CmkState::Enabled),
                KeyState::Disabled | KeyState::Creating | KeyState::PendingImport => Ok(CmkState::Disabled),
                KeyState::PendingDeletion | KeyState::PendingReplicaDeletion => Ok(CmkState::PendingDeletion),
                KeyState::Unavailable => {
                    Err(Failure::new(Kind::Unreachable, "its key store is not connected (state Unavailable)"))
                }
                other => Err(Failure::new(Kind::Unreachable, format!("unknown state {}", printable(other.as_str())))),
            },
            spec: key.key_spec.unwrap_or(KeySpec::SymmetricDefault),
            usage: key.key_usage.unwrap_or(KeyUsageType::EncryptDecrypt),
            description: printable(&key.description.unwrap_or_default()),
            created: key.creation_date.map(|date| date.secs()),
        })
    }

    /// The ARN, where the key is what the URI says and the URI can go on naming it by that.
    fn usable(self, uri: &AwsUri, region: &str) -> Result<String, Failure> {
        let config = |why: String| Failure::new(Kind::Config, why);
        let arn = printable(&self.arn);
        let pinned = AwsUri { key: AwsKey::Arn(self.arn.clone()), region: None, ..uri.clone() };
        if crate::keys::uri::CmkUri::parse(&pinned.to_string()).is_err() {
            return Err(garbage(&format!("DescribeKey with {arn:?} as the key's ARN")));
        }
        match pinned.named_region() {
            Some(named) if named != region => {
                return Err(config(format!("asked in region {region} and was told of {arn}; write region={named}")));
            }
            _ => {}
        }
        if self.usage != KeyUsageType::EncryptDecrypt {
            return Err(config(format!("{arn} is for {}, not for encryption", printable(self.usage.as_str()))));
        }
        let declared = match self.spec {
            KeySpec::SymmetricDefault => AwsAlgorithm::Symmetric,
            KeySpec::Rsa2048 | KeySpec::Rsa3072 | KeySpec::Rsa4096 => AwsAlgorithm::Rsa,
            other => return Err(config(format!("{arn} is of kind {}, not supported", printable(other.as_str())))),
        };
        match (declared, uri.algorithm) {
            (AwsAlgorithm::Rsa, AwsAlgorithm::Symmetric) => Err(config(format!(
                "{arn} is an RSA key, under which anybody with its public half can wrap; if that is meant, add algorithm=rsa"
            ))),
            (AwsAlgorithm::Symmetric, AwsAlgorithm::Rsa) => {
                Err(config(format!("{arn} is a symmetric key; leave algorithm=rsa away")))
            }
            _ => Ok(self.arn),
        }
    }
}

fn describe(connection: &Arc<Connection>, key: &str) -> Result<Described, Failure> {
    let key = key.to_string();
    connection.call(move |client| {
        let request = client.describe_key().key_id(&key);
        async move {
            let answer = request.send().await.map_err(|e| {
                let mut failure = failure(&e, Call::DescribeKey);
                if failure.kind == Kind::Refused && !failure.credentials {
                    failure.reason.push_str(" (a key ARN in the URI opens without kms:DescribeKey)");
                }
                failure
            })?;
            Described::from_answer(answer).ok_or_else(|| garbage("DescribeKey without ARN or state"))
        }
    })
}

fn garbage(what: &str) -> Failure {
    Failure::new(Kind::Unreachable, format!("the answer is not one of AWS KMS: {what}; check the endpoint"))
}

/// Compatible servers may answer with the bare id.
fn of_this_key(answered: Option<&str>, arn: &str) -> Result<(), Failure> {
    let id = |text: &str| text.rsplit('/').next().map(str::to_owned);
    match answered {
        Some(other) if other != arn && (other.starts_with("arn:") || id(other) != id(arn)) => {
            Err(garbage(&format!("it is about the key {:?}", printable(other))))
        }
        _ => Ok(()),
    }
}

fn service_context(algorithm: AwsAlgorithm, context: &EncryptionContext) -> Option<HashMap<String, String>> {
    (algorithm == AwsAlgorithm::Symmetric)
        .then(|| context.0.iter().map(|(name, value)| ((*name).to_string(), value.clone())).collect())
}

fn service_algorithm(algorithm: AwsAlgorithm) -> EncryptionAlgorithmSpec {
    match algorithm {
        AwsAlgorithm::Symmetric => EncryptionAlgorithmSpec::SymmetricDefault,
        AwsAlgorithm::Rsa => EncryptionAlgorithmSpec::RsaesOaepSha256,
    }
}

fn rsa_context(context: &EncryptionContext) -> [u8; 32] {
    Sha256::new().chain_update(RSA_CONTEXT).chain_update(context.canonical_bytes()).finalize().into()
}

fn check_size(blob: &[u8]) -> Result<(), Failure> {
    if (1..=MAX_BLOB).contains(&blob.len()) {
        Ok(())
    } else {
        Err(Failure::new(Kind::BadBlob, format!("no blob of AWS KMS has {} bytes", blob.len())))
    }
}

fn blob(answer: Option<Blob>) -> Result<Vec<u8>, Failure> {
    let bytes = answer.map(Blob::into_inner).unwrap_or_default();
    check_size(&bytes).map(|()| bytes).map_err(|_| garbage("a ciphertext of impossible size"))
}

fn wiped(plaintext: Option<Blob>) -> Option<Zeroizing<Vec<u8>>> {
    plaintext.map(|blob| Zeroizing::new(blob.into_inner()))
}

fn secret(bytes: &[u8]) -> Option<Secret32> {
    Secret32::written_by(|out| {
        if bytes.len() != out.len() {
            return Err(());
        }
        out.copy_from_slice(bytes);
        Ok(())
    })
    .ok()
}
