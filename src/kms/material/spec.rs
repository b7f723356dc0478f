//! What kinds of keys there are and what each may be used for, by AWS's names. Knows no key and no algorithm's inside.
//!
//! The pairings are those of "Key spec reference" in the AWS KMS Developer Guide.

/// An enum whose variants have the names that AWS gives them on the wire.
macro_rules! names {
    ($(#[$outer:meta])* $name:ident { $($(#[$inner:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$inner])* #[serde(rename = $text)] $variant),+
        }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// AWS's name.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text),+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<Self, UnknownName> {
                Self::ALL.iter().copied().find(|it| it.as_str() == text).ok_or(UnknownName)
            }
        }
    };
}

/// The text names nothing that this service has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no such name")]
pub struct UnknownName;

names! {
    /// The kind of a key: its algorithm and length.
    KeySpec {
        SymmetricDefault = "SYMMETRIC_DEFAULT",
        Rsa2048 = "RSA_2048",
        Rsa3072 = "RSA_3072",
        Rsa4096 = "RSA_4096",
        EccNistP256 = "ECC_NIST_P256",
        EccNistP384 = "ECC_NIST_P384",
        EccNistP521 = "ECC_NIST_P521",
        EccSecgP256k1 = "ECC_SECG_P256K1",
        Hmac224 = "HMAC_224",
        Hmac256 = "HMAC_256",
        Hmac384 = "HMAC_384",
        Hmac512 = "HMAC_512",
    }
}

names! {
    /// What a key is for; fixed when it is made.
    KeyUsage {
        EncryptDecrypt = "ENCRYPT_DECRYPT",
        SignVerify = "SIGN_VERIFY",
        GenerateVerifyMac = "GENERATE_VERIFY_MAC",
        KeyAgreement = "KEY_AGREEMENT",
    }
}

names! {
    EncryptionAlgorithm {
        SymmetricDefault = "SYMMETRIC_DEFAULT",
        RsaesOaepSha1 = "RSAES_OAEP_SHA_1",
        RsaesOaepSha256 = "RSAES_OAEP_SHA_256",
    }
}

names! {
    SigningAlgorithm {
        RsassaPssSha256 = "RSASSA_PSS_SHA_256",
        RsassaPssSha384 = "RSASSA_PSS_SHA_384",
        RsassaPssSha512 = "RSASSA_PSS_SHA_512",
        RsassaPkcs1V15Sha256 = "RSASSA_PKCS1_V1_5_SHA_256",
        RsassaPkcs1V15Sha384 = "RSASSA_PKCS1_V1_5_SHA_384",
        RsassaPkcs1V15Sha512 = "RSASSA_PKCS1_V1_5_SHA_512",
        EcdsaSha256 = "ECDSA_SHA_256",
        EcdsaSha384 = "ECDSA_SHA_384",
        EcdsaSha512 = "ECDSA_SHA_512",
    }
}

names! {
    MacAlgorithm {
        HmacSha224 = "HMAC_SHA_224",
        HmacSha256 = "HMAC_SHA_256",
        HmacSha384 = "HMAC_SHA_384",
        HmacSha512 = "HMAC_SHA_512",
    }
}

names! {
    KeyAgreementAlgorithm {
        Ecdh = "ECDH",
    }
}

names! {
    /// What a caller signs. (`EXTERNAL_MU` belongs to ML-DSA, which is not here.)
    MessageType {
        /// The message itself, which is hashed here.
        Raw = "RAW",
        /// Its digest, of the algorithm's length.
        Digest = "DIGEST",
    }
}

names! {
    DataKeySpec {
        Aes128 = "AES_128",
        Aes256 = "AES_256",
    }
}

names! {
    /// The key under which material is wrapped for its way here.
    WrappingKeySpec {
        Rsa2048 = "RSA_2048",
        Rsa3072 = "RSA_3072",
        Rsa4096 = "RSA_4096",
    }
}

names! {
    /// How material is wrapped for its way here. (`RSAES_PKCS1_V1_5` was withdrawn by AWS on 2023-10-10.)
    WrappingAlgorithm {
        RsaesOaepSha1 = "RSAES_OAEP_SHA_1",
        RsaesOaepSha256 = "RSAES_OAEP_SHA_256",
        RsaAesKeyWrapSha1 = "RSA_AES_KEY_WRAP_SHA_1",
        RsaAesKeyWrapSha256 = "RSA_AES_KEY_WRAP_SHA_256",
    }
}

impl KeySpec {
    pub const fn is_rsa(self) -> bool {
        matches!(self, Self::Rsa2048 | Self::Rsa3072 | Self::Rsa4096)
    }
    pub const fn is_ecc(self) -> bool {
        matches!(self, Self::EccNistP256 | Self::EccNistP384 | Self::EccNistP521 | Self::EccSecgP256k1)
    }
    pub const fn is_hmac(self) -> bool {
        matches!(self, Self::Hmac224 | Self::Hmac256 | Self::Hmac384 | Self::Hmac512)
    }
    /// It has a public key, and GenerateDataKeyPair makes such pairs.
    pub const fn is_asymmetric(self) -> bool {
        self.is_rsa() || self.is_ecc()
    }

    /// Bytes of the key where it is a plain string of bytes: AES and HMAC. `None` for key pairs.
    pub const fn raw_len(self) -> Option<usize> {
        match self {
            Self::SymmetricDefault | Self::Hmac256 => Some(32),
            Self::Hmac224 => Some(28),
            Self::Hmac384 => Some(48),
            Self::Hmac512 => Some(64),
            _ => None,
        }
    }

    /// Bits of an RSA modulus.
    pub const fn modulus_bits(self) -> Option<usize> {
        match self {
            Self::Rsa2048 => Some(2048),
            Self::Rsa3072 => Some(3072),
            Self::Rsa4096 => Some(4096),
            _ => None,
        }
    }

    /// What keys of this kind can be made for.
    pub const fn usages(self) -> &'static [KeyUsage] {
        match self {
            Self::SymmetricDefault => &[KeyUsage::EncryptDecrypt],
            Self::Rsa2048 | Self::Rsa3072 | Self::Rsa4096 => &[KeyUsage::EncryptDecrypt, KeyUsage::SignVerify],
            Self::EccNistP256 | Self::EccNistP384 | Self::EccNistP521 => {
                &[KeyUsage::SignVerify, KeyUsage::KeyAgreement]
            }
            Self::EccSecgP256k1 => &[KeyUsage::SignVerify],
            Self::Hmac224 | Self::Hmac256 | Self::Hmac384 | Self::Hmac512 => &[KeyUsage::GenerateVerifyMac],
        }
    }

    /// For keys with the usage ENCRYPT_DECRYPT.
    pub const fn encryption_algorithms(self) -> &'static [EncryptionAlgorithm] {
        match self {
            Self::SymmetricDefault => &[EncryptionAlgorithm::SymmetricDefault],
            Self::Rsa2048 | Self::Rsa3072 | Self::Rsa4096 => {
                &[EncryptionAlgorithm::RsaesOaepSha1, EncryptionAlgorithm::RsaesOaepSha256]
            }
            _ => &[],
        }
    }

    /// For keys with the usage SIGN_VERIFY.
    pub const fn signing_algorithms(self) -> &'static [SigningAlgorithm] {
        match self {
            Self::Rsa2048 | Self::Rsa3072 | Self::Rsa4096 => &[
                SigningAlgorithm::RsassaPkcs1V15Sha256,
                SigningAlgorithm::RsassaPkcs1V15Sha384,
                SigningAlgorithm::RsassaPkcs1V15Sha512,
                SigningAlgorithm::RsassaPssSha256,
                SigningAlgorithm::RsassaPssSha384,
                SigningAlgorithm::RsassaPssSha512,
            ],
            Self::EccNistP256 | Self::EccSecgP256k1 => &[SigningAlgorithm::EcdsaSha256],
            Self::EccNistP384 => &[SigningAlgorithm::EcdsaSha384],
            Self::EccNistP521 => &[SigningAlgorithm::EcdsaSha512],
            _ => &[],
        }
    }

    pub const fn mac_algorithms(self) -> &'static [MacAlgorithm] {
        match self {
            Self::Hmac224 => &[MacAlgorithm::HmacSha224],
            Self::Hmac256 => &[MacAlgorithm::HmacSha256],
            Self::Hmac384 => &[MacAlgorithm::HmacSha384],
            Self::Hmac512 => &[MacAlgorithm::HmacSha512],
            _ => &[],
        }
    }

    /// For keys with the usage KEY_AGREEMENT.
    pub const fn key_agreement_algorithms(self) -> &'static [KeyAgreementAlgorithm] {
        match self {
            Self::EccNistP256 | Self::EccNistP384 | Self::EccNistP521 => &[KeyAgreementAlgorithm::Ecdh],
            _ => &[],
        }
    }
}

impl EncryptionAlgorithm {
    /// Bytes of plaintext that fit into one encryption under a key of `spec`: 4096, or RSA-OAEP's limit (RFC 8017
    /// section 7.1.1); `None` where the two do not go together.
    pub const fn plaintext_max(self, spec: KeySpec) -> Option<usize> {
        let hash = match self {
            Self::SymmetricDefault if matches!(spec, KeySpec::SymmetricDefault) => return Some(4096),
            Self::SymmetricDefault => return None,
            Self::RsaesOaepSha1 => 20,
            Self::RsaesOaepSha256 => 32,
        };
        match spec.modulus_bits() {
            Some(bits) => Some(bits / 8 - 2 * hash - 2),
            None => None,
        }
    }
}

impl SigningAlgorithm {
    /// Bytes of the digest that it signs.
    pub const fn digest_len(self) -> usize {
        match self {
            Self::RsassaPssSha256 | Self::RsassaPkcs1V15Sha256 | Self::EcdsaSha256 => 32,
            Self::RsassaPssSha384 | Self::RsassaPkcs1V15Sha384 | Self::EcdsaSha384 => 48,
            Self::RsassaPssSha512 | Self::RsassaPkcs1V15Sha512 | Self::EcdsaSha512 => 64,
        }
    }
}

impl DataKeySpec {
    /// Length of the key.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Aes128 => 16,
            Self::Aes256 => 32,
        }
    }
}

impl WrappingKeySpec {
    pub const fn key_spec(self) -> KeySpec {
        match self {
            Self::Rsa2048 => KeySpec::Rsa2048,
            Self::Rsa3072 => KeySpec::Rsa3072,
            Self::Rsa4096 => KeySpec::Rsa4096,
        }
    }
}

impl WrappingAlgorithm {
    /// Whether material of `material` can be wrapped so: an RSA private key is too long for OAEP alone, and so is one of
    /// P-521 under RSA_2048.
    pub const fn accepts(self, material: KeySpec, wrapping: WrappingKeySpec) -> bool {
        match self {
            Self::RsaAesKeyWrapSha1 | Self::RsaAesKeyWrapSha256 => true,
            Self::RsaesOaepSha1 | Self::RsaesOaepSha256 => {
                let too_long = material.is_rsa()
                    || (matches!(material, KeySpec::EccNistP521) && matches!(wrapping, WrappingKeySpec::Rsa2048));
                !too_long
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for spec in KeySpec::ALL {
            assert_eq!(spec.to_string().parse(), Ok(*spec));
            assert_eq!(serde_json::to_string(spec).unwrap(), format!("\"{spec}\""));
        }
        assert_eq!("symmetric_default".parse::<KeySpec>(), Err(UnknownName));
        assert_eq!("".parse::<SigningAlgorithm>(), Err(UnknownName));
    }

    #[test]
    fn plaintext_limits_are_those_that_aws_documents() {
        let limits = |algorithm: EncryptionAlgorithm| {
            [KeySpec::Rsa2048, KeySpec::Rsa3072, KeySpec::Rsa4096].map(|spec| algorithm.plaintext_max(spec).unwrap())
        };
        assert_eq!(limits(EncryptionAlgorithm::RsaesOaepSha256), [190, 318, 446]);
        assert_eq!(limits(EncryptionAlgorithm::RsaesOaepSha1), [214, 342, 470]);
        assert_eq!(EncryptionAlgorithm::SymmetricDefault.plaintext_max(KeySpec::SymmetricDefault), Some(4096));
        assert_eq!(EncryptionAlgorithm::SymmetricDefault.plaintext_max(KeySpec::Rsa2048), None);
        assert_eq!(EncryptionAlgorithm::RsaesOaepSha1.plaintext_max(KeySpec::Hmac224), None);
    }

    #[test]
    fn each_usage_has_algorithms_and_no_other() {
        for spec in KeySpec::ALL {
            let has = |usage| spec.usages().contains(&usage);
            assert_eq!(has(KeyUsage::EncryptDecrypt), !spec.encryption_algorithms().is_empty(), "{spec}");
            assert_eq!(has(KeyUsage::SignVerify), !spec.signing_algorithms().is_empty(), "{spec}");
            assert_eq!(has(KeyUsage::GenerateVerifyMac), !spec.mac_algorithms().is_empty(), "{spec}");
            assert_eq!(has(KeyUsage::KeyAgreement), !spec.key_agreement_algorithms().is_empty(), "{spec}");
        }
    }
}
