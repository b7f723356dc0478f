//! The policy that the console's five steps produce, as it is written: who may do what under it.

use super::*;

const POLICY: &str = r#"{
    "Id": "key-consolepolicy-3",
    "Version": "2012-10-17",
    "Statement": [
        {
            "Sid": "Enable IAM User Permissions",
            "Effect": "Allow",
            "Principal": { "AWS": "arn:aws:iam::123456789012:root" },
            "Action": "kms:*",
            "Resource": "*"
        },
        {
            "Sid": "Allow access for Key Administrators",
            "Effect": "Allow",
            "Principal": { "AWS": "arn:aws:iam::123456789012:user/XYZ" },
            "Action": [
                "kms:Create*", "kms:Describe*", "kms:Enable*", "kms:List*", "kms:Put*", "kms:Update*", "kms:Revoke*",
                "kms:Disable*", "kms:Get*", "kms:Delete*", "kms:TagResource", "kms:UntagResource",
                "kms:ScheduleKeyDeletion", "kms:CancelKeyDeletion"
            ],
            "Resource": "*"
        },
        {
            "Sid": "Allow use of the key",
            "Effect": "Allow",
            "Principal": { "AWS": "arn:aws:iam::123456789012:user/ABC" },
            "Action": [ "kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:DescribeKey" ],
            "Resource": "*"
        },
        {
            "Sid": "Allow attachment of persistent resources",
            "Effect": "Allow",
            "Principal": { "AWS": "arn:aws:iam::123456789012:user/ABC" },
            "Action": [ "kms:CreateGrant", "kms:ListGrants", "kms:RevokeGrant" ],
            "Resource": "*",
            "Condition": { "Bool": { "kms:GrantIsForAWSResource": "true" } }
        }
    ]
}"#;

/// Every action of the service on a key, and whether XYZ and ABC may; ABC's grants are none for a service.
const ACTIONS: [(&str, bool, bool); 43] = [
    ("kms:CancelKeyDeletion", true, false),
    ("kms:CreateAlias", true, false),
    ("kms:CreateGrant", true, false),
    ("kms:Decrypt", false, true),
    ("kms:DeleteAlias", true, false),
    ("kms:DeleteImportedKeyMaterial", true, false),
    ("kms:DeriveSharedSecret", false, false),
    ("kms:DescribeKey", true, true),
    ("kms:DisableKey", true, false),
    ("kms:DisableKeyRotation", true, false),
    ("kms:EnableKey", true, false),
    ("kms:EnableKeyRotation", true, false),
    ("kms:Encrypt", false, true),
    ("kms:GenerateDataKey", false, true),
    ("kms:GenerateDataKeyPair", false, true),
    ("kms:GenerateDataKeyPairWithoutPlaintext", false, true),
    ("kms:GenerateDataKeyWithoutPlaintext", false, true),
    ("kms:GenerateMac", false, false),
    ("kms:GetKeyLastUsage", true, false),
    ("kms:GetKeyPolicy", true, false),
    ("kms:GetKeyRotationStatus", true, false),
    ("kms:GetParametersForImport", true, false),
    ("kms:GetPublicKey", true, false),
    ("kms:ImportKeyMaterial", false, false),
    ("kms:ListGrants", true, false),
    ("kms:ListKeyPolicies", true, false),
    ("kms:ListKeyRotations", true, false),
    ("kms:ListResourceTags", true, false),
    ("kms:PutKeyPolicy", true, false),
    ("kms:ReEncryptFrom", false, true),
    ("kms:ReEncryptTo", false, true),
    ("kms:ReplicateKey", false, false),
    ("kms:RevokeGrant", true, false),
    ("kms:RotateKeyOnDemand", false, false),
    ("kms:ScheduleKeyDeletion", true, false),
    ("kms:Sign", false, false),
    ("kms:SynchronizeMultiRegionKey", false, false),
    ("kms:TagResource", true, false),
    ("kms:UntagResource", true, false),
    ("kms:UpdateAlias", true, false),
    ("kms:UpdateKeyDescription", true, false),
    ("kms:Verify", false, false),
    ("kms:VerifyMac", false, false),
];

fn context(caller: &Principal) -> Context {
    Context::of(caller).for_grants(caller)
}

#[test]
fn both_users_against_every_action() {
    let policy = Document::parse_key_policy(POLICY).unwrap();
    for (action, xyz, abc) in ACTIONS {
        for (caller, expected) in [(XYZ, xyz), (ABC, abc), (OTHER, false), (FOREIGN, false), (ROOT, true)] {
            let request = request(caller, action, context(&caller));
            assert_eq!(allowed(&request, &policy, &[]), expected, "{} {action}", caller.arn);
        }
    }
}

#[test]
fn the_account_statement_lets_user_policies_decide() {
    let policy = Document::parse_key_policy(POLICY).unwrap();
    let all = user_policy(&[r#""Effect":"Allow","Action":"kms:*","Resource":"*""#]);
    for (action, _, _) in ACTIONS {
        assert!(allowed(&request(OTHER, action, context(&OTHER)), &policy, &[&all]), "{action}");
        assert!(!allowed(&request(FOREIGN, action, context(&FOREIGN)), &policy, &[&all]), "{action}");
    }
}

#[test]
fn grants_only_for_a_service() {
    let policy = Document::parse_key_policy(POLICY).unwrap();
    for action in ["kms:CreateGrant", "kms:ListGrants", "kms:RevokeGrant"] {
        assert!(!allowed(&request(ABC, action, Context::of(&ABC)), &policy, &[]), "{action}: the key is absent");
        assert!(!allowed(&request(ABC, action, context(&ABC)), &policy, &[]), "{action}");
        let service = Principal { is_service: true, ..ABC };
        assert!(allowed(&request(service, action, context(&service)), &policy, &[]), "{action}");
    }
}

#[test]
fn decisions_name_what_decided() {
    let policy = Document::parse_key_policy(POLICY).unwrap();
    let request = request(ABC, "kms:Decrypt", context(&ABC));
    let why = Why::KeyPolicy { statement: "Allow use of the key".to_owned() };
    assert_eq!(decide(&request, Some(&policy), &[], &[]), Decision::Allow(why));
}
