//! Who may do what, through operations: the console's policy, user policies, grants, the managed key.

use super::*;

/// The policy that the console's five steps produce.
fn console_policy() -> String {
    let user = |name: &str| json!({"AWS": format!("arn:aws:iam::{ACCOUNT}:user/{name}")});
    json!({
        "Id": "key-consolepolicy-3",
        "Version": "2012-10-17",
        "Statement": [
            {"Sid": "Enable IAM User Permissions", "Effect": "Allow",
             "Principal": {"AWS": format!("arn:aws:iam::{ACCOUNT}:root")}, "Action": "kms:*", "Resource": "*"},
            {"Sid": "Allow access for Key Administrators", "Effect": "Allow", "Principal": user("XYZ"),
             "Action": ["kms:Create*", "kms:Describe*", "kms:Enable*", "kms:List*", "kms:Put*", "kms:Update*", "kms:Revoke*",
                "kms:Disable*", "kms:Get*", "kms:Delete*", "kms:TagResource", "kms:UntagResource",
                "kms:ScheduleKeyDeletion", "kms:CancelKeyDeletion"], "Resource": "*"},
            {"Sid": "Allow use of the key", "Effect": "Allow", "Principal": user("ABC"),
             "Action": ["kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:DescribeKey"],
             "Resource": "*"},
            {"Sid": "Allow attachment of persistent resources", "Effect": "Allow", "Principal": user("ABC"),
             "Action": ["kms:CreateGrant", "kms:ListGrants", "kms:RevokeGrant"], "Resource": "*",
             "Condition": {"Bool": {"kms:GrantIsForAWSResource": "true"}}}
        ]
    })
    .to_string()
}

#[test]
fn administrators_cannot_use_and_users_cannot_administer() {
    let world = World::new();
    assert_eq!(code(world.root("CreateKey", json!({"Policy": console_policy()}))), "MalformedPolicyDocumentException");
    world.user("XYZ");
    world.user("ABC");
    let key = id_of(&world.root("CreateKey", json!({"Policy": console_policy()})).unwrap());
    let blob = world.encrypt(&key);
    let administering = [
        ("DescribeKey", json!({"KeyId": key})),
        ("DisableKey", json!({"KeyId": key})),
        ("EnableKey", json!({"KeyId": key})),
        ("TagResource", json!({"KeyId": key, "Tags": [{"TagKey": "a", "TagValue": "b"}]})),
        ("UntagResource", json!({"KeyId": key, "TagKeys": ["a"]})),
        ("GetKeyPolicy", json!({"KeyId": key})),
        ("ScheduleKeyDeletion", json!({"KeyId": key})),
        ("CancelKeyDeletion", json!({"KeyId": key})),
        ("EnableKey", json!({"KeyId": key})),
        ("UpdateKeyDescription", json!({"KeyId": key, "Description": "d"})),
    ];
    let using = [
        ("Encrypt", json!({"KeyId": key, "Plaintext": "aGVsbG8="})),
        ("Decrypt", json!({"CiphertextBlob": blob})),
        ("GenerateDataKey", json!({"KeyId": key, "KeySpec": "AES_256"})),
        ("GenerateDataKeyWithoutPlaintext", json!({"KeyId": key, "KeySpec": "AES_256"})),
        ("ReEncrypt", json!({"CiphertextBlob": blob, "DestinationKeyId": key})),
    ];
    for (operation, input) in &administering {
        assert_eq!(code(world.as_user("XYZ", operation, input.clone())), "success", "XYZ {operation}");
        let expected = if *operation == "DescribeKey" { "success" } else { "AccessDeniedException" };
        assert_eq!(code(world.as_user("ABC", operation, input.clone())), expected, "ABC {operation}");
    }
    for (operation, input) in &using {
        assert_eq!(code(world.as_user("XYZ", operation, input.clone())), "AccessDeniedException", "XYZ {operation}");
        assert_eq!(code(world.as_user("ABC", operation, input.clone())), "success", "ABC {operation}");
    }
    let grant = json!({"KeyId": key, "GranteePrincipal": format!("arn:aws:iam::{ACCOUNT}:user/XYZ"), "Operations": ["Decrypt"]});
    assert_eq!(code(world.as_user("ABC", "CreateGrant", grant.clone())), "AccessDeniedException");
    // The same rights in a service's hand.
    world.service_principal("mount");
    let policy = console_policy().replace("user/ABC", "user/mount");
    world.root("PutKeyPolicy", json!({"KeyId": key, "Policy": policy})).unwrap();
    assert_eq!(code(world.as_user("mount", "CreateGrant", grant)), "success");
    assert_eq!(code(world.as_user("ABC", "Decrypt", json!({"CiphertextBlob": blob}))), "AccessDeniedException");
    assert_eq!(code(world.as_user("XYZ", "Decrypt", json!({"CiphertextBlob": blob}))), "success", "by its grant");
}

#[test]
fn the_account_statement_delegates_to_user_policies() {
    let world = World::new();
    world.user("ann");
    let key = world.key();
    let encrypt = || code(world.as_user("ann", "Encrypt", json!({"KeyId": key, "Plaintext": "aGVsbG8="})));
    assert_eq!(encrypt(), "AccessDeniedException");
    let allow = |effect: &str| json!({"Version": "2012-10-17", "Statement": [{"Effect": effect, "Action": "kms:Encrypt", "Resource": "*"}]});
    world.user_policy("ann", &allow("Allow"));
    assert_eq!(encrypt(), "success");
    world.user_policy("ann", &allow("Deny"));
    assert_eq!(encrypt(), "AccessDeniedException");
    world.service().administer(super::super::admin::Request::PolicyDelete { name: "ann".into() }, 0).unwrap();
    assert_eq!(encrypt(), "AccessDeniedException");
    assert_eq!(code(world.as_user("ann", "ListKeys", json!({}))), "AccessDeniedException");
}

#[test]
fn nobody_locks_himself_out_by_accident() {
    let world = World::new();
    world.user("ann");
    let key = world.key();
    let only_ann =
        json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "kms:*", "Resource": "*",
        "Principal": {"AWS": format!("arn:aws:iam::{ACCOUNT}:user/ann")}}]})
        .to_string();
    let put = |bypass: bool| {
        let input = json!({"KeyId": key, "Policy": only_ann, "BypassPolicyLockoutSafetyCheck": bypass});
        code(world.root("PutKeyPolicy", input))
    };
    assert_eq!(put(false), "MalformedPolicyDocumentException");
    assert_eq!(put(true), "success");
    assert_eq!(code(world.root("DescribeKey", json!({"KeyId": key}))), "AccessDeniedException");
    assert_eq!(code(world.as_user("ann", "DescribeKey", json!({"KeyId": key}))), "success");
    let long = format!("{}{}", only_ann, " ".repeat(33_000));
    assert_eq!(
        code(world.as_user("ann", "PutKeyPolicy", json!({"KeyId": key, "Policy": long}))),
        "LimitExceededException"
    );
}

#[test]
fn grants_from_their_making_to_their_end() {
    let mut world = World::new();
    world.user("ann");
    let key = world.key();
    let ann = format!("arn:aws:iam::{ACCOUNT}:user/ann");
    let input = json!({"KeyId": key, "GranteePrincipal": ann, "RetiringPrincipal": ann, "Operations": ["Encrypt", "Decrypt"],
        "Name": "n", "Constraints": {"EncryptionContextSubset": {"Dept": "IT"}}});
    let made = world.root("CreateGrant", input.clone()).unwrap();
    let again = world.root("CreateGrant", input).unwrap();
    assert_eq!(made["GrantId"], again["GrantId"]);
    assert_ne!(made["GrantToken"], again["GrantToken"]);
    world.restart();
    let encrypt = |world: &World, context: Value, tokens: Value| {
        let input = json!({"KeyId": key, "Plaintext": "aGVsbG8=", "EncryptionContext": context, "GrantTokens": tokens});
        code(world.as_user("ann", "Encrypt", input))
    };
    assert_eq!(encrypt(&world, json!({"Dept": "IT", "x": "y"}), json!([made["GrantToken"]])), "success");
    assert_eq!(encrypt(&world, json!({"Dept": "HR"}), json!([])), "AccessDeniedException");
    assert_eq!(encrypt(&world, json!({"Dept": "IT"}), json!(["nonsense"])), "InvalidGrantTokenException");
    let listed = world.root("ListGrants", json!({"KeyId": key, "GranteePrincipal": ann})).unwrap();
    assert_eq!(listed["Grants"][0]["Constraints"], json!({"EncryptionContextSubset": {"Dept": "IT"}}));
    assert_eq!(
        world.root("ListRetirableGrants", json!({"RetiringPrincipal": ann})).unwrap()["Grants"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    world.as_user("ann", "RetireGrant", json!({"GrantToken": made["GrantToken"]})).unwrap();
    assert_eq!(encrypt(&world, json!({"Dept": "IT"}), json!([])), "AccessDeniedException");
    assert_eq!(code(world.root("RevokeGrant", json!({"KeyId": key, "GrantId": made["GrantId"]}))), "NotFoundException");
    let bad = json!({"KeyId": key, "GranteePrincipal": ann, "Operations": ["Sign"]});
    assert_eq!(code(world.root("CreateGrant", bad)), "ValidationException");
}

#[test]
fn the_managed_key_is_for_services_only() {
    let mut world = World::new();
    world.service_principal("mount");
    world.user("ann");
    world.user_policy(
        "ann",
        &json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "kms:*", "Resource": "*"}]}),
    );
    let key = operations::MANAGED_ALIAS;
    let generate = json!({"KeyId": key, "KeySpec": "AES_256"});
    assert_eq!(code(world.root("GenerateDataKey", generate.clone())), "NotFoundException");
    let made = world.as_user("mount", "GenerateDataKey", generate.clone()).unwrap();
    let decrypt = json!({"CiphertextBlob": made["CiphertextBlob"]});
    assert_eq!(world.as_user("mount", "Decrypt", decrypt.clone()).unwrap()["Plaintext"], made["Plaintext"]);
    for user in ["ann", "root"] {
        assert_eq!(code(world.as_user(user, "Decrypt", decrypt.clone())), "AccessDeniedException");
        assert_eq!(code(world.as_user(user, "GenerateDataKey", generate.clone())), "AccessDeniedException");
    }
    let described = world.root("DescribeKey", json!({"KeyId": key})).unwrap();
    assert_eq!(described["KeyMetadata"]["KeyManager"], "AWS");
    let id = id_of(&described);
    for operation in ["DisableKey", "ScheduleKeyDeletion", "DisableKeyRotation", "RotateKeyOnDemand"] {
        for user in ["root", "mount", "ann"] {
            assert_eq!(
                code(world.as_user(user, operation, json!({"KeyId": id}))),
                "AccessDeniedException",
                "{user} {operation}"
            );
        }
    }
    let policy = crate::kms::policy::Document::default_for(ACCOUNT);
    let put = json!({"KeyId": id, "Policy": policy, "BypassPolicyLockoutSafetyCheck": true});
    assert_eq!(code(world.root("PutKeyPolicy", put)), "AccessDeniedException");
    assert_eq!(code(world.root("DeleteAlias", json!({"AliasName": key}))), "NotAuthorizedException");
    assert_eq!(
        code(world.root("CreateAlias", json!({"AliasName": "alias/aws/x", "TargetKeyId": id}))),
        "NotAuthorizedException"
    );
    world.advance(366 * DAY);
    world.service().sweep();
    world.restart();
    assert_eq!(world.service().view().keys[&id].record.materials.len(), 2, "it is rotated by itself");
    assert_eq!(world.as_user("mount", "Decrypt", decrypt).unwrap()["Plaintext"], made["Plaintext"]);
}

#[test]
fn names_of_keys() {
    let world = World::new();
    let key = world.key();
    world.root("CreateAlias", json!({"AliasName": "alias/a", "TargetKeyId": key})).unwrap();
    let describe = |name: &str| world.root("DescribeKey", json!({"KeyId": name}));
    for name in [
        key.clone(),
        format!("arn:aws:kms:us-east-1:{ACCOUNT}:key/{key}"),
        "alias/a".into(),
        format!("arn:aws:kms:us-east-1:{ACCOUNT}:alias/a"),
    ] {
        assert_eq!(id_of(&describe(&name).unwrap()), key);
    }
    let message = |name: &str| describe(name).unwrap_err().message.unwrap();
    assert_eq!(message("nope"), "Invalid keyId 'nope'");
    assert_eq!(
        message("00000000-0000-4000-8000-000000000000"),
        format!("Key 'arn:aws:kms:us-east-1:{ACCOUNT}:key/00000000-0000-4000-8000-000000000000' does not exist")
    );
    assert_eq!(message("alias/b"), format!("Alias arn:aws:kms:us-east-1:{ACCOUNT}:alias/b is not found."));
    assert_eq!(message(&format!("arn:aws:kms:us-west-2:{ACCOUNT}:key/{key}")), "Invalid arn us-west-2");
    assert_eq!(code(describe("arn:aws:kms:us-east-1:999999999999:key/x")), "AccessDeniedException");
    assert_eq!(code(describe("arn:aws:s3:::x")), "InvalidArnException");
    assert_eq!(code(world.root("DisableKey", json!({"KeyId": "alias/a"}))), "NotFoundException");
    assert_eq!(
        code(world.root("CreateAlias", json!({"AliasName": "alias/a", "TargetKeyId": key}))),
        "AlreadyExistsException"
    );
    let other = world.key();
    let blob = world.encrypt(&key);
    assert_eq!(code(world.root("Decrypt", json!({"KeyId": other, "CiphertextBlob": blob}))), "IncorrectKeyException");
    world.root("UpdateAlias", json!({"AliasName": "alias/a", "TargetKeyId": other})).unwrap();
    assert_eq!(id_of(&describe("alias/a").unwrap()), other);
    world.root("DeleteAlias", json!({"AliasName": "alias/a"})).unwrap();
    assert_eq!(code(describe("alias/a")), "NotFoundException");
}

#[test]
fn access_keys_end_when_they_are_told_to() {
    use crate::kms::admin::Request;
    let world = World::new();
    let service = world.service();
    let secret = |id: &Value| {
        let id = id.as_str().unwrap();
        service.view().user_of(id).and_then(|user| user.secret(id)).map(|secret| secret.as_str().to_owned())
    };
    let add = |name: &str| service.administer(Request::UserAdd { name: name.into(), service: false }, 0);
    let ann = add("ann").unwrap();
    assert_eq!(secret(&ann["AccessKeyId"]).as_deref(), ann["SecretAccessKey"].as_str());
    for bad in ["ann", "root", "a/b", ""] {
        assert!(add(bad).is_err(), "{bad}");
    }
    let rotate = |keep_old| service.administer(Request::UserRotate { name: "ann".into(), keep_old }, 0).unwrap();
    let second = rotate(true);
    assert!(secret(&ann["AccessKeyId"]).is_some() && secret(&second["AccessKeyId"]).is_some());
    let third = rotate(true);
    assert!(secret(&ann["AccessKeyId"]).is_none() && secret(&second["AccessKeyId"]).is_some());
    let fourth = rotate(false);
    assert!(secret(&second["AccessKeyId"]).is_none() && secret(&third["AccessKeyId"]).is_none());
    service.administer(Request::UserDisable { name: "ann".into(), access_key: None }, 0).unwrap();
    assert!(secret(&fourth["AccessKeyId"]).is_none());
    service.administer(Request::UserEnable { name: "ann".into() }, 0).unwrap();
    assert!(secret(&fourth["AccessKeyId"]).is_some());
    let listed = service.administer(Request::UserList {}, 0).unwrap().to_string();
    assert!(!listed.contains("Secret"), "{listed}");
}
