//! The input of every operation that the service offers, by the protocol's model (version 2014-11-01). Knows no behaviour.

use super::{
    pattern,
    shape::{Kind, Member},
};

const fn required(name: &'static str, kind: Kind) -> Member {
    Member { name, required: true, kind }
}

const fn optional(name: &'static str, kind: Kind) -> Member {
    Member { name, required: false, kind }
}

const KEY_ID_TYPE: Kind = Kind::Text { min: 1, max: 2048, pattern: None };
const ALIAS_NAME_TYPE: Kind = Kind::Text { min: 1, max: 256, pattern: Some(&pattern::ALIAS) };
const PRINCIPAL_ID_TYPE: Kind = Kind::Text { min: 1, max: 256, pattern: Some(&pattern::PRINCIPAL) };
const GRANT_OPERATION: Kind = Kind::Choice(&[
    "Decrypt",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyWithoutPlaintext",
    "ReEncryptFrom",
    "ReEncryptTo",
    "Sign",
    "Verify",
    "GetPublicKey",
    "CreateGrant",
    "RetireGrant",
    "DescribeKey",
    "GenerateDataKeyPair",
    "GenerateDataKeyPairWithoutPlaintext",
    "GenerateMac",
    "VerifyMac",
    "DeriveSharedSecret",
]);
const GRANT_OPERATION_LIST: Kind = Kind::List { item: &GRANT_OPERATION, min: 0, max: 1000 };
const GRANT_CONSTRAINT_SOURCE_ARN_TYPE: Kind = Kind::Text { min: 20, max: 512, pattern: Some(&pattern::SOURCE_ARN) };
const GRANT_CONSTRAINTS: Kind = Kind::Structure(&[
    optional("EncryptionContextSubset", Kind::Pairs),
    optional("EncryptionContextEquals", Kind::Pairs),
    optional("SourceArn", GRANT_CONSTRAINT_SOURCE_ARN_TYPE),
]);
const GRANT_TOKEN_TYPE: Kind = Kind::Text { min: 1, max: 8192, pattern: None };
const GRANT_TOKEN_LIST: Kind = Kind::List { item: &GRANT_TOKEN_TYPE, min: 0, max: 10 };
const GRANT_NAME_TYPE: Kind = Kind::Text { min: 1, max: 256, pattern: Some(&pattern::ALIAS) };
const SERVICE_PRINCIPAL_TYPE: Kind = Kind::Text { min: 1, max: 128, pattern: Some(&pattern::SERVICE_PRINCIPAL) };
const POLICY_TYPE: Kind = Kind::Text { min: 1, max: 131072, pattern: Some(&pattern::POLICY) };
const DESCRIPTION_TYPE: Kind = Kind::Text { min: 0, max: 8192, pattern: None };
const KEY_USAGE_TYPE: Kind = Kind::Choice(&["SIGN_VERIFY", "ENCRYPT_DECRYPT", "GENERATE_VERIFY_MAC", "KEY_AGREEMENT"]);
const CUSTOMER_MASTER_KEY_SPEC: Kind = Kind::Choice(&[
    "RSA_2048",
    "RSA_3072",
    "RSA_4096",
    "ECC_NIST_P256",
    "ECC_NIST_P384",
    "ECC_NIST_P521",
    "ECC_SECG_P256K1",
    "SYMMETRIC_DEFAULT",
    "HMAC_224",
    "HMAC_256",
    "HMAC_384",
    "HMAC_512",
    "SM2",
]);
const KEY_SPEC: Kind = Kind::Choice(&[
    "RSA_2048",
    "RSA_3072",
    "RSA_4096",
    "ECC_NIST_P256",
    "ECC_NIST_P384",
    "ECC_NIST_P521",
    "ECC_SECG_P256K1",
    "SYMMETRIC_DEFAULT",
    "HMAC_224",
    "HMAC_256",
    "HMAC_384",
    "HMAC_512",
    "SM2",
    "ML_DSA_44",
    "ML_DSA_65",
    "ML_DSA_87",
    "ECC_NIST_EDWARDS25519",
]);
const ORIGIN_TYPE: Kind = Kind::Choice(&["AWS_KMS", "EXTERNAL", "AWS_CLOUDHSM", "EXTERNAL_KEY_STORE"]);
const CUSTOM_KEY_STORE_ID_TYPE: Kind = Kind::Text { min: 1, max: 64, pattern: None };
const TAG_KEY_TYPE: Kind = Kind::Text { min: 1, max: 128, pattern: None };
const TAG_VALUE_TYPE: Kind = Kind::Text { min: 0, max: 256, pattern: None };
const TAG: Kind = Kind::Structure(&[required("TagKey", TAG_KEY_TYPE), required("TagValue", TAG_VALUE_TYPE)]);
const TAG_LIST: Kind = Kind::List { item: &TAG, min: 0, max: 1000 };
const XKS_KEY_ID_TYPE: Kind = Kind::Text { min: 1, max: 128, pattern: None };
const ENCRYPTION_ALGORITHM_SPEC: Kind =
    Kind::Choice(&["SYMMETRIC_DEFAULT", "RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "SM2PKE"]);
const KEY_ENCRYPTION_MECHANISM: Kind = Kind::Choice(&["RSAES_OAEP_SHA_256"]);
const RECIPIENT_INFO: Kind = Kind::Structure(&[
    optional("KeyEncryptionAlgorithm", KEY_ENCRYPTION_MECHANISM),
    optional("AttestationDocument", Kind::Blob { min: 1, max: 262144 }),
]);
const DRY_RUN_MODIFIER_TYPE: Kind = Kind::Choice(&["IGNORE_CIPHERTEXT"]);
const DRY_RUN_MODIFIER_LIST: Kind = Kind::List { item: &DRY_RUN_MODIFIER_TYPE, min: 0, max: 1000 };
const BACKING_KEY_ID_TYPE: Kind = Kind::Text { min: 64, max: 64, pattern: Some(&pattern::MATERIAL_ID) };
const KEY_AGREEMENT_ALGORITHM_SPEC: Kind = Kind::Choice(&["ECDH"]);
const DATA_KEY_SPEC: Kind = Kind::Choice(&["AES_256", "AES_128"]);
const DATA_KEY_PAIR_SPEC: Kind = Kind::Choice(&[
    "RSA_2048",
    "RSA_3072",
    "RSA_4096",
    "ECC_NIST_P256",
    "ECC_NIST_P384",
    "ECC_NIST_P521",
    "ECC_SECG_P256K1",
    "SM2",
    "ECC_NIST_EDWARDS25519",
]);
const MAC_ALGORITHM_SPEC: Kind = Kind::Choice(&["HMAC_SHA_224", "HMAC_SHA_256", "HMAC_SHA_384", "HMAC_SHA_512"]);
const POLICY_NAME_TYPE: Kind = Kind::Text { min: 1, max: 128, pattern: Some(&pattern::POLICY_NAME) };
const ALGORITHM_SPEC: Kind = Kind::Choice(&[
    "RSAES_PKCS1_V1_5",
    "RSAES_OAEP_SHA_1",
    "RSAES_OAEP_SHA_256",
    "RSA_AES_KEY_WRAP_SHA_1",
    "RSA_AES_KEY_WRAP_SHA_256",
    "SM2PKE",
]);
const WRAPPING_KEY_SPEC: Kind = Kind::Choice(&["RSA_2048", "RSA_3072", "RSA_4096", "SM2"]);
const EXPIRATION_MODEL_TYPE: Kind = Kind::Choice(&["KEY_MATERIAL_EXPIRES", "KEY_MATERIAL_DOES_NOT_EXPIRE"]);
const IMPORT_TYPE: Kind = Kind::Choice(&["NEW_KEY_MATERIAL", "EXISTING_KEY_MATERIAL"]);
const KEY_MATERIAL_DESCRIPTION_TYPE: Kind =
    Kind::Text { min: 0, max: 256, pattern: Some(&pattern::MATERIAL_DESCRIPTION) };
const MARKER_TYPE: Kind = Kind::Text { min: 1, max: 1024, pattern: Some(&pattern::MARKER) };
const GRANT_ID_TYPE: Kind = Kind::Text { min: 1, max: 128, pattern: None };
const INCLUDE_KEY_MATERIAL: Kind = Kind::Choice(&["ALL_KEY_MATERIAL", "ROTATIONS_ONLY"]);
const MESSAGE_TYPE: Kind = Kind::Choice(&["RAW", "DIGEST", "EXTERNAL_MU"]);
const SIGNING_ALGORITHM_SPEC: Kind = Kind::Choice(&[
    "RSASSA_PSS_SHA_256",
    "RSASSA_PSS_SHA_384",
    "RSASSA_PSS_SHA_512",
    "RSASSA_PKCS1_V1_5_SHA_256",
    "RSASSA_PKCS1_V1_5_SHA_384",
    "RSASSA_PKCS1_V1_5_SHA_512",
    "ECDSA_SHA_256",
    "ECDSA_SHA_384",
    "ECDSA_SHA_512",
    "SM2DSA",
    "ML_DSA_SHAKE_256",
    "ED25519_SHA_512",
    "ED25519_PH_SHA_512",
]);
const TAG_KEY_LIST: Kind = Kind::List { item: &TAG_KEY_TYPE, min: 0, max: 1000 };

/// Input members of the operations that are served, in alphabetical order.
pub static INPUTS: &[(&str, &[Member])] = &[
    ("CancelKeyDeletion", &[required("KeyId", KEY_ID_TYPE)]),
    ("CreateAlias", &[required("AliasName", ALIAS_NAME_TYPE), required("TargetKeyId", KEY_ID_TYPE)]),
    (
        "CreateGrant",
        &[
            required("KeyId", KEY_ID_TYPE),
            optional("GranteePrincipal", PRINCIPAL_ID_TYPE),
            optional("RetiringPrincipal", PRINCIPAL_ID_TYPE),
            required("Operations", GRANT_OPERATION_LIST),
            optional("Constraints", GRANT_CONSTRAINTS),
            optional("GrantTokens", GRANT_TOKEN_LIST),
            optional("Name", GRANT_NAME_TYPE),
            optional("DryRun", Kind::Flag),
            optional("GranteeServicePrincipal", SERVICE_PRINCIPAL_TYPE),
            optional("RetiringServicePrincipal", SERVICE_PRINCIPAL_TYPE),
        ],
    ),
    (
        "CreateKey",
        &[
            optional("Policy", POLICY_TYPE),
            optional("Description", DESCRIPTION_TYPE),
            optional("KeyUsage", KEY_USAGE_TYPE),
            optional("CustomerMasterKeySpec", CUSTOMER_MASTER_KEY_SPEC),
            optional("KeySpec", KEY_SPEC),
            optional("Origin", ORIGIN_TYPE),
            optional("CustomKeyStoreId", CUSTOM_KEY_STORE_ID_TYPE),
            optional("BypassPolicyLockoutSafetyCheck", Kind::Flag),
            optional("Tags", TAG_LIST),
            optional("MultiRegion", Kind::Flag),
            optional("XksKeyId", XKS_KEY_ID_TYPE),
        ],
    ),
    (
        "Decrypt",
        &[
            optional("CiphertextBlob", Kind::Blob { min: 1, max: 6144 }),
            optional("EncryptionContext", Kind::Pairs),
            optional("GrantTokens", GRANT_TOKEN_LIST),
            optional("KeyId", KEY_ID_TYPE),
            optional("EncryptionAlgorithm", ENCRYPTION_ALGORITHM_SPEC),
            optional("Recipient", RECIPIENT_INFO),
            optional("DryRun", Kind::Flag),
            optional("DryRunModifiers", DRY_RUN_MODIFIER_LIST),
        ],
    ),
    ("DeleteAlias", &[required("AliasName", ALIAS_NAME_TYPE)]),
    ("DeleteImportedKeyMaterial", &[required("KeyId", KEY_ID_TYPE), optional("KeyMaterialId", BACKING_KEY_ID_TYPE)]),
    (
        "DeriveSharedSecret",
        &[
            required("KeyId", KEY_ID_TYPE),
            required("KeyAgreementAlgorithm", KEY_AGREEMENT_ALGORITHM_SPEC),
            required("PublicKey", Kind::Blob { min: 1, max: 8192 }),
            optional("GrantTokens", GRANT_TOKEN_LIST),
            optional("DryRun", Kind::Flag),
            optional("Recipient", RECIPIENT_INFO),
        ],
    ),
    ("DescribeKey", &[required("KeyId", KEY_ID_TYPE), optional("GrantTokens", GRANT_TOKEN_LIST)]),
    ("DisableKey", &[required("KeyId", KEY_ID_TYPE)]),
    ("DisableKeyRotation", &[required("KeyId", KEY_ID_TYPE)]),
    ("EnableKey", &[required("KeyId", KEY_ID_TYPE)]),
    (
        "EnableKeyRotation",
        &[required("KeyId", KEY_ID_TYPE), optional("RotationPeriodInDays", Kind::Integer { min: 90, max: 2560 })],
    ),
    (
        "Encrypt",
        &[
            required("KeyId", KEY_ID_TYPE),
            required("Plaintext", Kind::Blob { min: 1, max: 4096 }),
            optional("EncryptionContext", Kind::Pairs),
            optional("GrantTokens", GRANT_TOKEN_LIST),
            optional("EncryptionAlgorithm", ENCRYPTION_ALGORITHM_SPEC),
            optional("DryRun", Kind::Flag),
        ],
    ),
    (
        "GenerateDataKey",
        &[
            required("KeyId", KEY_ID_TYPE),
            optional("EncryptionContext", Kind::Pairs),
            optional("NumberOfBytes", Kind::Integer { min: 1, max: 1024 }),
            optional("KeySpec", DATA_KEY_SPEC),
            optional("GrantTokens", GRANT_TOKEN_LIST),
            optional("Recipient", RECIPIENT_INFO),
            optional("DryRun", Kind::Flag),
        ],
    ),
    (
        "GenerateDataKeyPair",
        &[
            optional("EncryptionContext", Kind::Pairs),
            required("KeyId", KEY_ID_TYPE),
            required("KeyPairSpec", DATA_KEY_PAIR_SPEC),
            optional("GrantTokens", GRANT_TOKEN_LIST),
            optional("Recipient", RECIPIENT_INFO),
            optional("DryRun", Kind::Flag),
        ],
    ),
    (
        "GenerateDataKeyPairWithoutPlaintext",
        &[
            optional("EncryptionContext", Kind::Pairs),
            required("KeyId", KEY_ID_TYPE),
            required("KeyPairSpec", DATA_KEY_PAIR_SPEC),
            optional("GrantTokens", GRANT_TOKEN_LIST),
            optional("DryRun", Kind::Flag),
        ],
    ),
    (
        "GenerateDataKeyWithoutPlaintext",
        &[
            required("KeyId", KEY_ID_TYPE),
            optional("EncryptionContext", Kind::Pairs),
            optional("KeySpec", DATA_KEY_SPEC),
            optional("NumberOfBytes", Kind::Integer { min: 1, max: 1024 }),
            optional("GrantTokens", GRANT_TOKEN_LIST),
            optional("DryRun", Kind::Flag),
        ],
    ),
    (
        "GenerateMac",
        &[
            required("Message", Kind::Blob { min: 1, max: 4096 }),
            required("KeyId", KEY_ID_TYPE),
            required("MacAlgorithm", MAC_ALGORITHM_SPEC),
            optional("GrantTokens", GRANT_TOKEN_LIST),
            optional("DryRun", Kind::Flag),
        ],
    ),
    (
        "GenerateRandom",
        &[
            optional("NumberOfBytes", Kind::Integer { min: 1, max: 1024 }),
            optional("CustomKeyStoreId", CUSTOM_KEY_STORE_ID_TYPE),
            optional("Recipient", RECIPIENT_INFO),
        ],
    ),
    ("GetKeyLastUsage", &[required("KeyId", KEY_ID_TYPE)]),
    ("GetKeyPolicy", &[required("KeyId", KEY_ID_TYPE), optional("PolicyName", POLICY_NAME_TYPE)]),
    ("GetKeyRotationStatus", &[required("KeyId", KEY_ID_TYPE)]),
    (
        "GetParametersForImport",
        &[
            required("KeyId", KEY_ID_TYPE),
            required("WrappingAlgorithm", ALGORITHM_SPEC),
            required("WrappingKeySpec", WRAPPING_KEY_SPEC),
        ],
    ),
    ("GetPublicKey", &[required("KeyId", KEY_ID_TYPE), optional("GrantTokens", GRANT_TOKEN_LIST)]),
    (
        "ImportKeyMaterial",
        &[
            required("KeyId", KEY_ID_TYPE),
            required("ImportToken", Kind::Blob { min: 1, max: 6144 }),
            required("EncryptedKeyMaterial", Kind::Blob { min: 1, max: 6144 }),
            optional("ValidTo", Kind::Time),
            optional("ExpirationModel", EXPIRATION_MODEL_TYPE),
            optional("ImportType", IMPORT_TYPE),
            optional("KeyMaterialDescription", KEY_MATERIAL_DESCRIPTION_TYPE),
            optional("KeyMaterialId", BACKING_KEY_ID_TYPE),
        ],
    ),
    (
        "ListAliases",
        &[
            optional("KeyId", KEY_ID_TYPE),
            optional("Limit", Kind::Integer { min: 1, max: 1000 }),
            optional("Marker", MARKER_TYPE),
        ],
    ),
    (
        "ListGrants",
        &[
            optional("Limit", Kind::Integer { min: 1, max: 1000 }),
            optional("Marker", MARKER_TYPE),
            required("KeyId", KEY_ID_TYPE),
            optional("GrantId", GRANT_ID_TYPE),
            optional("GranteePrincipal", PRINCIPAL_ID_TYPE),
            optional("GranteeServicePrincipal", SERVICE_PRINCIPAL_TYPE),
        ],
    ),
    (
        "ListKeyPolicies",
        &[
            required("KeyId", KEY_ID_TYPE),
            optional("Limit", Kind::Integer { min: 1, max: 1000 }),
            optional("Marker", MARKER_TYPE),
        ],
    ),
    (
        "ListKeyRotations",
        &[
            required("KeyId", KEY_ID_TYPE),
            optional("IncludeKeyMaterial", INCLUDE_KEY_MATERIAL),
            optional("Limit", Kind::Integer { min: 1, max: 1000 }),
            optional("Marker", MARKER_TYPE),
        ],
    ),
    ("ListKeys", &[optional("Limit", Kind::Integer { min: 1, max: 1000 }), optional("Marker", MARKER_TYPE)]),
    (
        "ListResourceTags",
        &[
            required("KeyId", KEY_ID_TYPE),
            optional("Limit", Kind::Integer { min: 1, max: 1000 }),
            optional("Marker", MARKER_TYPE),
        ],
    ),
    (
        "ListRetirableGrants",
        &[
            optional("Limit", Kind::Integer { min: 1, max: 1000 }),
            optional("Marker", MARKER_TYPE),
            optional("RetiringPrincipal", PRINCIPAL_ID_TYPE),
            optional("RetiringServicePrincipal", SERVICE_PRINCIPAL_TYPE),
        ],
    ),
    (
        "PutKeyPolicy",
        &[
            required("KeyId", KEY_ID_TYPE),
            optional("PolicyName", POLICY_NAME_TYPE),
            required("Policy", POLICY_TYPE),
            optional("BypassPolicyLockoutSafetyCheck", Kind::Flag),
        ],
    ),
    (
        "ReEncrypt",
        &[
            optional("CiphertextBlob", Kind::Blob { min: 1, max: 6144 }),
            optional("SourceEncryptionContext", Kind::Pairs),
            optional("SourceKeyId", KEY_ID_TYPE),
            required("DestinationKeyId", KEY_ID_TYPE),
            optional("DestinationEncryptionContext", Kind::Pairs),
            optional("SourceEncryptionAlgorithm", ENCRYPTION_ALGORITHM_SPEC),
            optional("DestinationEncryptionAlgorithm", ENCRYPTION_ALGORITHM_SPEC),
            optional("GrantTokens", GRANT_TOKEN_LIST),
            optional("DryRun", Kind::Flag),
            optional("DryRunModifiers", DRY_RUN_MODIFIER_LIST),
        ],
    ),
    (
        "RetireGrant",
        &[
            optional("GrantToken", GRANT_TOKEN_TYPE),
            optional("KeyId", KEY_ID_TYPE),
            optional("GrantId", GRANT_ID_TYPE),
            optional("DryRun", Kind::Flag),
        ],
    ),
    (
        "RevokeGrant",
        &[required("KeyId", KEY_ID_TYPE), required("GrantId", GRANT_ID_TYPE), optional("DryRun", Kind::Flag)],
    ),
    ("RotateKeyOnDemand", &[required("KeyId", KEY_ID_TYPE)]),
    (
        "ScheduleKeyDeletion",
        &[required("KeyId", KEY_ID_TYPE), optional("PendingWindowInDays", Kind::Integer { min: 1, max: 365 })],
    ),
    (
        "Sign",
        &[
            required("KeyId", KEY_ID_TYPE),
            required("Message", Kind::Blob { min: 1, max: 4096 }),
            optional("MessageType", MESSAGE_TYPE),
            optional("GrantTokens", GRANT_TOKEN_LIST),
            required("SigningAlgorithm", SIGNING_ALGORITHM_SPEC),
            optional("DryRun", Kind::Flag),
        ],
    ),
    ("TagResource", &[required("KeyId", KEY_ID_TYPE), required("Tags", TAG_LIST)]),
    ("UntagResource", &[required("KeyId", KEY_ID_TYPE), required("TagKeys", TAG_KEY_LIST)]),
    ("UpdateAlias", &[required("AliasName", ALIAS_NAME_TYPE), required("TargetKeyId", KEY_ID_TYPE)]),
    ("UpdateKeyDescription", &[required("KeyId", KEY_ID_TYPE), required("Description", DESCRIPTION_TYPE)]),
    (
        "Verify",
        &[
            required("KeyId", KEY_ID_TYPE),
            required("Message", Kind::Blob { min: 1, max: 4096 }),
            optional("MessageType", MESSAGE_TYPE),
            required("Signature", Kind::Blob { min: 1, max: 6144 }),
            required("SigningAlgorithm", SIGNING_ALGORITHM_SPEC),
            optional("GrantTokens", GRANT_TOKEN_LIST),
            optional("DryRun", Kind::Flag),
        ],
    ),
    (
        "VerifyMac",
        &[
            required("Message", Kind::Blob { min: 1, max: 4096 }),
            required("KeyId", KEY_ID_TYPE),
            required("MacAlgorithm", MAC_ALGORITHM_SPEC),
            required("Mac", Kind::Blob { min: 1, max: 6144 }),
            optional("GrantTokens", GRANT_TOKEN_LIST),
            optional("DryRun", Kind::Flag),
        ],
    ),
];

/// Operations of the model that this service does not offer: custom key stores and multi-Region replicas.
pub const UNSUPPORTED: &[&str] = &[
    "ConnectCustomKeyStore",
    "CreateCustomKeyStore",
    "DeleteCustomKeyStore",
    "DescribeCustomKeyStores",
    "DisconnectCustomKeyStore",
    "ReplicateKey",
    "UpdateCustomKeyStore",
    "UpdatePrimaryRegion",
];

pub fn input(operation: &str) -> Option<&'static [Member]> {
    INPUTS.binary_search_by(|(name, _)| (*name).cmp(operation)).ok().map(|at| INPUTS[at].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_can_be_searched() {
        assert!(INPUTS.is_sorted_by_key(|(name, _)| *name));
        assert!(INPUTS.iter().all(|(name, _)| input(name).is_some() && !UNSUPPORTED.contains(name)));
        assert!(input("Encrypt2").is_none());
    }
}
