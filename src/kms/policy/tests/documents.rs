//! What documents are refused, and how principals, resources, aliases and the order of precedence work.

use super::*;

fn refused(text: &str) {
    for parse in [Document::parse_key_policy, Document::parse_user_policy] {
        assert!(parse(text).is_err(), "{text}");
    }
}
fn refused_statement(statement: &str) {
    refused(&format!(r#"{{"Version":"2012-10-17","Statement":[{{{statement}}}]}}"#));
    refused(&format!(r#"{{"Version":"2012-10-17","Statement":{{{statement}}}}}"#));
}

#[test]
fn malformed_documents() {
    for text in [
        "",
        "null",
        "[]",
        "{}",
        "my policy",
        r#"{"Statement":[]}"#,
        r#"{"Version":"2012-10-17"}"#,
        r#"{"Version":"2012-10-18","Statement":{"Effect":"Allow","Principal":"*","Action":"*","Resource":"*"}}"#,
        r#"{"version":"2012-10-17","Statement":{"Effect":"Allow","Principal":"*","Action":"*","Resource":"*"}}"#,
        r#"{"Statement":{"Effect":"Allow","Principal":"*","Action":"*","Resource":"*"}} x"#,
        r#"{"Id":1,"Statement":{"Effect":"Allow","Principal":"*","Action":"*","Resource":"*"}}"#,
        r#"{"Statement":{"Effect":"Deny","Effect":"Allow","Principal":"*","Action":"*","Resource":"*"}}"#,
        r#"{"Statement":{"Effect":"Allow","Principal":"*","Action":"*","Resource":"*"},"Statement":[]}"#,
        r#"{"Statement":"Allow"}"#,
        r#"{"Statement":["Allow"]}"#,
        "{\"Id\":\"\u{100}\",\"Statement\":{\"Effect\":\"Allow\",\"Principal\":\"*\"}}",
    ] {
        refused(text);
    }
    let nested = format!("{}{}", r#"{"Statement":"#, "[".repeat(100_000));
    refused(&nested);
}

#[test]
fn malformed_statements() {
    // For each kind of policy alone it would do without the last element.
    let rest = r#""Action":"kms:*","Resource":"*""#;
    for statement in [
        rest.to_owned(),
        format!(r#""Effect":"allow",{rest}"#),
        format!(r#""Effect":true,{rest}"#),
        format!(r#""Effect":"Allow",{rest},"Extra":1"#),
        format!(r#""Effect":"Allow","Sid":1,{rest}"#),
        format!(r#""Effect":"Allow",{rest},"Principal":"somebody""#),
        format!(r#""Effect":"Allow",{rest},"Principal":{{}}"#),
        format!(r#""Effect":"Allow",{rest},"Principal":{{"AWS":[]}}"#),
        format!(r#""Effect":"Allow",{rest},"Principal":["*"]"#),
        format!(r#""Effect":"Allow",{rest},"Principal":{{"Aws":"*"}}"#),
        format!(r#""Effect":"Allow",{rest},"Principal":{{"AWS":"AIDACKCEVSQ6C2EXAMPLE"}}"#),
        format!(r#""Effect":"Allow",{rest},"Principal":{{"AWS":"arn:aws:iam::123456789012:user/*"}}"#),
        format!(r#""Effect":"Allow",{rest},"Principal":{{"AWS":"arn:aws:iam::12345678901:user/a"}}"#),
        format!(r#""Effect":"Allow",{rest},"Principal":{{"AWS":"arn:aws:iam::123456789012:user/"}}"#),
        format!(r#""Effect":"Allow",{rest},"Principal":{{"AWS":"arn:aws:iam::123456789012:group"}}"#),
        format!(r#""Effect":"Allow",{rest},"Principal":{{"AWS":"arn:aws:s3::123456789012:user/a"}}"#),
        format!(r#""Effect":"Allow",{rest},"Principal":{{"AWS":"arn:aws:iam:us-east-1:123456789012:user/a"}}"#),
        format!(r#""Effect":"Allow",{rest},"Principal":{{"Service":"*"}}"#),
        format!(r#""Effect":"Allow",{rest},"Principal":{{"CanonicalUser":"a"}}"#),
        format!(r#""Effect":"Allow",{rest},"NotPrincipal":{{"AWS":"123456789012"}}"#),
        format!(r#""Effect":"Deny",{rest},"NotPrincipal":"*""#),
        format!(r#""Effect":"Deny",{rest},"Principal":"*","NotPrincipal":{{"AWS":"123456789012"}}"#),
        r#""Effect":"Deny","Principal":"*","Action":"*""#.to_owned(),
        r#""Effect":"Deny","Principal":"*","Resource":"*""#.to_owned(),
        r#""Effect":"Allow","Action":"kms:*","NotAction":"kms:*","Resource":"*""#.to_owned(),
        r#""Effect":"Allow","Action":"kms:*","NotResource":"*","Resource":"*""#.to_owned(),
        r#""Effect":"Allow","Action":[],"Resource":"*""#.to_owned(),
        r#""Effect":"Allow","Action":"kms:*","Resource":[]"#.to_owned(),
        r#""Effect":"Allow","Action":"Decrypt","Resource":"*""#.to_owned(),
        r#""Effect":"Allow","Action":"k*:Decrypt","Resource":"*""#.to_owned(),
        r#""Effect":"Allow","Action":"kms:De crypt","Resource":"*""#.to_owned(),
        r#""Effect":"Allow","Action":"kms:","Resource":"*""#.to_owned(),
        r#""Effect":"Allow","Action":1,"Resource":"*""#.to_owned(),
        r#""Effect":"Allow","Action":"kms:*","Resource":"alias/a""#.to_owned(),
        r#""Effect":"Allow","Action":"kms:*","Resource":"arn:aws:kms:us-east-1:1:key/${aws:username""#.to_owned(),
        r#""Effect":"Allow","Action":"kms:*","Resource":"arn:aws:kms:us-east-1:1:key/${}""#.to_owned(),
        r#""Effect":"Allow","Action":"kms:*","Resource":"arn:aws:kms:us-east-1:1:key/${aws:username,x}""#.to_owned(),
    ] {
        refused_statement(&statement);
        let whole = statement.contains("Principal");
        if !whole {
            refused_statement(&format!(r#"{statement},"Principal":"*""#));
        }
    }
    let twice = r#""Sid":"A","Effect":"Allow","Principal":"*","Action":"*","Resource":"*""#;
    refused(&format!(r#"{{"Statement":[{{{twice}}},{{{twice}}}]}}"#));
}

#[test]
fn malformed_conditions() {
    for condition in [
        "[]",
        r#""StringEquals""#,
        r#"{"StringEquals":[]}"#,
        r#"{"StringEqual":{"aws:username":"a"}}"#,
        r#"{"stringequals":{"aws:username":"a"}}"#,
        r#"{"ForSomeValues:StringEquals":{"aws:username":"a"}}"#,
        r#"{"ForAnyValue:ForAllValues:StringEquals":{"aws:username":"a"}}"#,
        r#"{"StringEqualsIfExistsIfExists":{"aws:username":"a"}}"#,
        r#"{"NullIfExists":{"aws:username":"true"}}"#,
        r#"{"ForAnyValue:Null":{"aws:username":"true"}}"#,
        r#"{"StringEquals":{"username":"a"}}"#,
        r#"{"StringEquals":{"aws:username":[]}}"#,
        r#"{"StringEquals":{"aws:username":null}}"#,
        r#"{"StringEquals":{"aws:username":{"a":"b"}}}"#,
        r#"{"StringEquals":{"aws:username":"a","aws:username":"b"}}"#,
        r#"{"StringEquals":{"aws:username":"${aws:"}}"#,
        r#"{"NumericEquals":{"aws:EpochTime":"many"}}"#,
        r#"{"NumericEquals":{"aws:EpochTime":"inf"}}"#,
        r#"{"NumericEquals":{"aws:EpochTime":"${aws:EpochTime}"}}"#,
        r#"{"NumericLike":{"aws:EpochTime":"1"}}"#,
        r#"{"DateLessThan":{"aws:CurrentTime":"2020-13-01T00:00:00Z"}}"#,
        r#"{"DateLessThan":{"aws:CurrentTime":"2021-02-29"}}"#,
        r#"{"Bool":{"aws:SecureTransport":"yes"}}"#,
        r#"{"Null":{"aws:username":"maybe"}}"#,
        r#"{"BinaryEquals":{"aws:username":"?"}}"#,
        r#"{"IpAddress":{"aws:SourceIp":"10.0.0.0/33"}}"#,
        r#"{"IpAddress":{"aws:SourceIp":"10.0.0"}}"#,
        r#"{"ArnLike":{"aws:PrincipalArn":"user/*"}}"#,
    ] {
        let rest = r#""Effect":"Allow","Action":"*","Resource":"*""#;
        refused_statement(&format!(r#"{rest},"Condition":{condition}"#));
        refused_statement(&format!(r#"{rest},"Principal":"*","Condition":{condition}"#));
    }
}

#[test]
fn each_kind_of_policy_holds_its_own_elements() {
    let with = r#"{"Statement":{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}}"#;
    let without = r#"{"Statement":{"Effect":"Allow","Action":"kms:*","Resource":"*"}}"#;
    assert!(Document::parse_key_policy(with).is_ok() && Document::parse_user_policy(with).is_err());
    assert!(Document::parse_key_policy(without).is_err() && Document::parse_user_policy(without).is_ok());
    let spaced = r#"{"Statement":{"Sid":"a b","Effect":"Allow","Action":"kms:*","Resource":"*"}}"#;
    assert!(Document::parse_user_policy(spaced).is_err() && Document::parse(spaced).is_ok());
    // A document in the wrong place allows nothing.
    let (with, without) = (Document::parse(with).unwrap(), Document::parse(without).unwrap());
    let asked = request(OTHER, "kms:Encrypt", Context::of(&OTHER));
    assert!(!allowed(&asked, &without, &[]));
    assert!(!allowed(&asked, &key_policy(&[ACCOUNT_STATEMENT]), &[&with]));
}

const ACCOUNT_STATEMENT: &str =
    r#""Effect":"Allow","Principal":{"AWS":"123456789012"},"Action":"kms:*","Resource":"*""#;
const ALLOW_ALL: &str = r#""Effect":"Allow","Action":"*","Resource":"*""#;

#[test]
fn an_allow_without_resource_or_action_has_no_effect() {
    for statement in
        [r#""Effect":"Allow","Principal":"*","Action":"kms:*""#, r#""Effect":"Allow","Principal":"*","Resource":"*""#]
    {
        let policy = key_policy(&[statement]);
        assert!(!allowed(&request(ROOT, "kms:Encrypt", Context::of(&ROOT)), &policy, &[]));
    }
}

#[test]
fn the_default_policy_is_the_account() {
    let policy = Document::parse_key_policy(&Document::default_for(ACCOUNT)).unwrap();
    let all = user_policy(&[ALLOW_ALL]);
    assert!(allowed(&request(ROOT, "kms:Encrypt", Context::of(&ROOT)), &policy, &[]));
    assert!(!allowed(&request(OTHER, "kms:Encrypt", Context::of(&OTHER)), &policy, &[]));
    assert!(allowed(&request(OTHER, "kms:Encrypt", Context::of(&OTHER)), &policy, &[&all]));
    assert!(!allowed(&request(FOREIGN, "kms:Encrypt", Context::of(&FOREIGN)), &policy, &[&all]));
}

#[test]
fn principals_in_all_their_forms() {
    let cases: [(&str, &[bool; 5]); 9] = [
        // ROOT, XYZ, MOUNT, FOREIGN without and with a policy of its own
        (r#""*""#, &[true, true, true, false, true]),
        (r#"{"AWS":"*"}"#, &[true, true, true, false, true]),
        (r#"{"AWS":["arn:aws:iam::123456789012:user/a","*"]}"#, &[true, true, true, false, true]),
        (r#"{"AWS":"123456789012"}"#, &[true, false, false, false, false]),
        (r#"{"AWS":"arn:aws:iam::123456789012:root"}"#, &[true, false, false, false, false]),
        (r#"{"AWS":"arn:aws:iam::123456789012:user/XYZ"}"#, &[false, true, false, false, false]),
        (r#"{"AWS":"arn:aws:iam::123456789012:user/xyz"}"#, &[false, false, false, false, false]),
        (r#"{"Service":["mount","sqs.amazonaws.com"]}"#, &[false, false, true, false, false]),
        (r#"{"AWS":"arn:aws:iam::999999999999:user/eve","Federated":"x"}"#, &[false, false, false, false, true]),
    ];
    let all = user_policy(&[ALLOW_ALL]);
    for (principal, expected) in cases {
        let policy =
            key_policy(&[&format!(r#""Effect":"Allow","Principal":{principal},"Action":"kms:*","Resource":"*""#)]);
        let ask = |caller: Principal, user: &[&Document]| {
            allowed(&request(caller, "kms:Encrypt", Context::of(&caller)), &policy, user)
        };
        let got = [ask(ROOT, &[]), ask(XYZ, &[]), ask(MOUNT, &[]), ask(FOREIGN, &[]), ask(FOREIGN, &[&all])];
        assert_eq!(&got, expected, "{principal}");
    }
    // The name of a service that a mere user has is no service.
    let policy = key_policy(&[r#""Effect":"Allow","Principal":{"Service":"mount"},"Action":"kms:*","Resource":"*""#]);
    let user = Principal { is_service: false, ..MOUNT };
    assert!(!allowed(&request(user, "kms:Encrypt", Context::of(&user)), &policy, &[]));
}

#[test]
fn not_principal_spares_only_whom_it_names_with_his_account() {
    let allow = r#""Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*""#;
    let deny = |principals: &str| {
        let statement = format!(r#""Effect":"Deny","NotPrincipal":{principals},"Action":"kms:Encrypt","Resource":"*""#);
        let policy = key_policy(&[allow, &statement]);
        [ROOT, XYZ, ABC, MOUNT].map(|c| allowed(&request(c, "kms:Encrypt", Context::of(&c)), &policy, &[]))
    };
    let both = r#"{"AWS":["123456789012","arn:aws:iam::123456789012:user/XYZ"]}"#;
    assert_eq!(deny(both), [true, true, false, false]);
    assert_eq!(deny(r#"{"AWS":"arn:aws:iam::123456789012:user/XYZ"}"#), [false; 4]);
    assert_eq!(deny(r#"{"AWS":"123456789012"}"#), [true, false, false, false]);
    assert_eq!(deny(r#"{"Service":"mount"}"#), [false, false, false, true]);
}

#[test]
fn an_explicit_deny_wins_over_everything() {
    let root = |action: &str| {
        let policy = key_policy(&[
            ACCOUNT_STATEMENT,
            r#""Effect":"Deny","Principal":{"AWS":"123456789012"},"Action":"kms:Encrypt","Resource":"*""#,
        ]);
        allowed(&request(ROOT, action, Context::of(&ROOT)), &policy, &[])
    };
    assert!(root("kms:Decrypt") && !root("kms:Encrypt"));
    // A Deny for the account is one for each of its users.
    let policy = key_policy(&[
        r#""Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*""#,
        r#""Sid":"No","Effect":"Deny","Principal":{"AWS":"123456789012"},"Action":"kms:encrypt","Resource":"*""#,
    ]);
    let asked = request(XYZ, "kms:Encrypt", Context::of(&XYZ));
    let decision = decide(&asked, Some(&policy), &[], &[]);
    assert_eq!(decision, Decision::Deny(Why::KeyPolicy { statement: "No".to_owned() }));
    assert!(decision.denial(&asked).unwrap().ends_with("with an explicit deny in a resource-based policy"));
    let user = user_policy(&[ALLOW_ALL, r#""Effect":"Deny","Action":"kms:*","Resource":"*""#]);
    let asked = request(XYZ, "kms:Decrypt", Context::of(&XYZ));
    let decision = decide(&asked, Some(&policy), &[&user], &[]);
    assert_eq!(decision, Decision::Deny(Why::UserPolicy { policy: 0, statement: "#2".to_owned() }));
    assert_eq!(decide(&asked, Some(&policy), &[], &[]), Decision::Allow(Why::KeyPolicy { statement: "#1".to_owned() }));
}

#[test]
fn without_a_key_the_users_policies_decide() {
    let ask = |caller: Principal, action: &str, resource: &str, user: &[&Document]| {
        let asked = Request { principal: caller, action, resource, context: Context::of(&caller) };
        decide(&asked, None, user, &[]).is_allowed()
    };
    let create = user_policy(&[r#""Effect":"Allow","Action":["kms:CreateKey","kms:List*"],"Resource":"*""#]);
    assert!(ask(ROOT, "kms:CreateKey", "*", &[]) && !ask(XYZ, "kms:CreateKey", "*", &[]));
    assert!(ask(XYZ, "kms:CreateKey", "*", &[&create]) && !ask(XYZ, "kms:GenerateRandom", "*", &[&create]));
    // A policy for keys is none for what concerns no key.
    let keys = user_policy(&[r#""Effect":"Allow","Action":"kms:*","Resource":"arn:aws:kms:*:*:key/*""#]);
    assert!(!ask(XYZ, "kms:CreateKey", "*", &[&keys]));
    let alias = "arn:aws:kms:us-east-1:123456789012:alias/app";
    let aliases = user_policy(&[
        r#""Effect":"Allow","Action":"kms:*Alias","Resource":"arn:aws:kms:us-east-1:123456789012:alias/${aws:username}""#,
    ]);
    let app = user("arn:aws:iam::123456789012:user/app");
    assert!(ask(app, "kms:CreateAlias", alias, &[&aliases]) && !ask(XYZ, "kms:CreateAlias", alias, &[&aliases]));
    assert!(ask(ROOT, "kms:CreateAlias", alias, &[]));
    // Another account's alias, and what is no ARN.
    for resource in ["arn:aws:kms:us-east-1:999999999999:alias/app", "alias/app", "", "arn:aws:kms:us-east-1::alias/a"]
    {
        assert!(!ask(ROOT, "kms:CreateAlias", resource, &[]), "{resource}");
    }
}

#[test]
fn resources_and_wildcards() {
    let matches = |pattern: &str, resource: &str| {
        let policy = user_policy(&[&format!(r#""Effect":"Allow","Action":"kms:*","Resource":"{pattern}""#)]);
        let account = key_policy(&[ACCOUNT_STATEMENT]);
        let asked = Request { principal: OTHER, action: "kms:Encrypt", resource, context: Context::of(&OTHER) };
        decide(&asked, Some(&account), &[&policy], &[]).is_allowed()
    };
    for pattern in [
        "*",
        KEY,
        "arn:aws:kms:*",
        "arn:*",
        "arn:aws:kms:us-east-1:123456789012:key/*",
        "arn:aws:kms:us-east-1:123456789012:*",
        "arn:aws:kms:us-*-1:1234567890??:key/1234abcd-*",
        "arn:aws:kms:*:*:*",
        "arn:aws:kms:us-east-1:*:key/1234abcd-12ab-34cd-56ef-1234567890ab",
    ] {
        assert!(matches(pattern, KEY), "{pattern}");
    }
    for pattern in [
        "arn:aws:kms:us-east-1:123456789012:alias/*",
        "arn:aws:kms:us-east-1:123456789012:key/",
        "arn:aws:kms:us-east-1:123456789012:key/1234ABCD-12ab-34cd-56ef-1234567890ab",
        "arn:aws:kms:us-west-2:*",
        "arn:aws:kms:us-*ab",
        "arn:aws:kms:us-east-1?123456789012:key/*",
        "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890a",
        "arn:aws:kms:us-east-1:12345678901?:key/1234abcd-12ab-34cd-56ef-1234567890ab?",
    ] {
        assert!(!matches(pattern, KEY), "{pattern}");
    }
}

#[test]
fn variables_are_literal_and_need_a_value() {
    let context = |name: &str| {
        let mut context = Context::of(&OTHER);
        context.set("aws:username", [name]);
        context
    };
    let policy = |version: &str, value: &str| {
        let text = format!(
            r#"{{"Version":"{version}","Statement":{{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*",
            "Condition":{{"StringLike":{{"kms:RequestAlias":"{value}"}}}}}}}}"#
        );
        Document::parse_key_policy(&text).unwrap()
    };
    let ask = |policy: &Document, name: &str, alias: &str| {
        allowed(&request(OTHER, "kms:Encrypt", context(name).by_alias(alias)), policy, &[])
    };
    let own = policy("2012-10-17", "alias/${aws:username}-*");
    assert!(ask(&own, "bob", "alias/bob-1") && !ask(&own, "bob", "alias/eve-1"));
    assert!(!ask(&own, "*", "alias/bob-1"), "a value is no wildcard");
    assert!(ask(&policy("2012-10-17", "alias/${*}${?}${$}"), "bob", "alias/*?$"));
    assert!(!ask(&policy("2012-10-17", "alias/${*}"), "bob", "alias/x"));
    assert!(ask(&policy("2012-10-17", "alias/${aws:PrincipalTag/team, 'sales}'}"), "bob", "alias/sales}"));
    assert!(!ask(&policy("2012-10-17", "alias/${aws:PrincipalTag/team}"), "bob", "alias/"));
    // A key with several values has no value for a variable.
    let several = policy("2012-10-17", "alias/${kms:ResourceAliases}");
    for (values, expected) in [(&["bob"][..], true), (&["bob", "eve"], false), (&[], false)] {
        let mut context = context("bob").by_alias("alias/bob");
        context.set("kms:ResourceAliases", values.iter().copied());
        assert_eq!(allowed(&request(OTHER, "kms:Encrypt", context), &several, &[]), expected, "{values:?}");
    }
    // The older language has no variables: the text means itself.
    let old = policy("2008-10-17", "alias/${aws:username}");
    assert!(ask(&old, "bob", "alias/${aws:username}") && !ask(&old, "bob", "alias/bob"));
}

#[test]
fn a_variable_without_value_never_widens() {
    let everybody = r#""Principal":"*","Action":"kms:*""#;
    let unknown = "arn:aws:kms:us-east-1:123456789012:key/${aws:PrincipalTag/x}";
    let asked = request(OTHER, "kms:Encrypt", Context::of(&OTHER));
    for allow in [
        format!(r#""Effect":"Allow",{everybody},"NotResource":"{unknown}""#),
        format!(
            r#""Effect":"Allow",{everybody},"Resource":"*","Condition":{{"StringNotEquals":{{"aws:username":"${{aws:PrincipalTag/x}}"}}}}"#
        ),
        format!(
            r#""Effect":"Allow",{everybody},"Resource":"*","Condition":{{"ArnNotLike":{{"aws:username":"arn:aws:iam::123456789012:user/x"}}}}"#
        ),
    ] {
        assert!(!allowed(&asked, &key_policy(&[&allow]), &[]), "{allow}");
        let deny = allow.replace("Allow", "Deny");
        let all = format!(r#""Effect":"Allow",{everybody},"Resource":"*""#);
        assert!(!allowed(&asked, &key_policy(&[&all, &deny]), &[]), "{deny}");
    }
}

#[test]
fn the_lock_out_check() {
    let out = |statement: &str, caller: Principal, user: &[&Document]| {
        locks_out(&key_policy(&[statement]), &caller, KEY, &Context::of(&caller), user)
    };
    let all = user_policy(&[ALLOW_ALL]);
    assert!(!out(ACCOUNT_STATEMENT, ROOT, &[]));
    assert!(out(ACCOUNT_STATEMENT, XYZ, &[]) && !out(ACCOUNT_STATEMENT, XYZ, &[&all]));
    let own = r#""Effect":"Allow","Principal":{"AWS":"arn:aws:iam::123456789012:user/XYZ"},"Action":"kms:Put*","Resource":"*""#;
    assert!(out(own, ROOT, &[]) && !out(own, XYZ, &[]));
    let some = own.replace("kms:Put*", "kms:Encrypt");
    assert!(out(&some, XYZ, &[&all]));
}

#[test]
fn named_principals_can_be_asked_for() {
    let policy = key_policy(&[
        r#""Effect":"Allow","Principal":{"AWS":["*","123456789012","arn:aws:iam::123456789012:user/a"],"Service":"mount"}"#,
    ]);
    assert_eq!(policy.principals(), ["arn:aws:iam::123456789012:user/a", "mount"]);
}
