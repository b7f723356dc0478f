//! Each condition operator against values, absence, several values, and keys that nobody knows.

use super::*;

/// Whether an Allow with the condition allows, and whether a Deny with it denies.
fn both(condition: &str, context: &Context) -> (bool, bool) {
    let rest = format!(r#""Principal":"*","Action":"kms:*","Resource":"*","Condition":{{{condition}}}"#);
    let allow = key_policy(&[&format!(r#""Effect":"Allow",{rest}"#)]);
    let all = r#""Effect":"Allow","Principal":"*","Action":"*","Resource":"*""#;
    let deny = key_policy(&[all, &format!(r#""Effect":"Deny",{rest}"#)]);
    let asked = request(OTHER, "kms:Encrypt", context.clone());
    (allowed(&asked, &allow, &[]), !allowed(&asked, &deny, &[]))
}
fn context(values: &[&str]) -> Context {
    let mut context = Context::of(&OTHER);
    context.set("aws:SourceIdentity", values.iter().copied());
    context
}

#[test]
fn single_values() {
    let cases = [
        ("StringEquals", r#""abc""#, "abc", true),
        ("StringEquals", r#""abc""#, "ABC", false),
        ("StringEquals", r#""a*""#, "abc", false),
        ("StringEquals", r#""a*""#, "a*", true),
        ("StringEquals", r#"["x","abc"]"#, "abc", true),
        ("StringEquals", "12", "12", true),
        ("StringEquals", "true", "true", true),
        ("StringNotEquals", r#"["x","abc"]"#, "abc", false),
        ("StringNotEquals", r#"["x","y"]"#, "abc", true),
        ("StringEqualsIgnoreCase", r#""aBc""#, "AbC", true),
        ("StringEqualsIgnoreCase", r#""a*""#, "abc", false),
        ("StringEqualsIgnoreCase", "\"\u{e4}\"", "\u{c4}", true),
        ("StringNotEqualsIgnoreCase", r#""aBc""#, "AbC", false),
        ("StringLike", r#""a*c""#, "abbbc", true),
        ("StringLike", r#""a?c""#, "abc", true),
        ("StringLike", r#""a?c""#, "ac", false),
        ("StringLike", r#""a*""#, "A", false),
        ("StringLike", r#""*b*""#, "a:b:c", true),
        ("StringLike", r#""***""#, "", true),
        ("StringNotLike", r#""a*c""#, "abbbc", false),
        ("NumericEquals", "10", "10.0", true),
        ("NumericEquals", r#""1e1""#, "10", true),
        ("NumericNotEquals", "10", "11", true),
        ("NumericLessThan", "10", "10", false),
        ("NumericLessThan", "10", "9", true),
        ("NumericLessThanEquals", "10", "10", true),
        ("NumericLessThanEquals", "10", "11", false),
        ("NumericGreaterThan", "10", "10", false),
        ("NumericGreaterThan", "10", "11", true),
        ("NumericGreaterThanEquals", "10", "10", true),
        ("NumericGreaterThanEquals", "10", "9", false),
        ("DateEquals", r#""2020-01-01T01:00:00+01:00""#, "2020-01-01T00:00:00Z", true),
        ("DateEquals", r#""2020-01-01""#, "1577836800", true),
        ("DateEquals", r#""2020""#, "1577836800", true),
        ("DateNotEquals", r#""2020-01-01""#, "1577836801", true),
        ("DateLessThan", r#""2020-01-01T00:00:00.001Z""#, "2020-01-01T00:00:00Z", true),
        ("DateGreaterThan", r#""2019-12-31T23:59:59Z""#, "2020-01-01T00:00:00Z", true),
        ("DateGreaterThanEquals", "1577836800", "2020-01-01T00:00:00Z", true),
        ("DateLessThanEquals", "1577836799", "2020-01-01T00:00:00Z", false),
        ("Bool", r#""true""#, "true", true),
        ("Bool", "false", "false", true),
        ("Bool", r#""TRUE""#, "false", false),
        ("BinaryEquals", r#""YWJj""#, "YWJj", true),
        ("BinaryEquals", r#""YWJj""#, "YWJk", false),
        ("IpAddress", r#""10.0.0.0/8""#, "10.255.0.1", true),
        ("IpAddress", r#""10.0.0.0/8""#, "11.0.0.1", false),
        ("IpAddress", r#""0.0.0.0/0""#, "11.0.0.1", true),
        ("IpAddress", r#""0.0.0.0/0""#, "::1", false),
        ("IpAddress", r#""10.0.0.1""#, "::ffff:10.0.0.1", true),
        ("IpAddress", r#""10.0.0.1/32""#, "10.0.0.2", false),
        ("IpAddress", r#""2001:db8::/32""#, "2001:db8::1", true),
        ("IpAddress", r#""2001:db8::/33""#, "2001:db8:8000::1", false),
        ("IpAddress", r#""::/0""#, "2001:db8::1", true),
        ("NotIpAddress", r#"["10.0.0.0/8","192.168.0.0/16"]"#, "192.168.1.1", false),
        ("NotIpAddress", r#""10.0.0.0/8""#, "11.0.0.1", true),
        ("ArnLike", r#""arn:aws:iam::*:user/*""#, "arn:aws:iam::123456789012:user/a/b", true),
        ("ArnLike", r#""arn:aws:*:::user/*""#, "arn:aws:iam::123456789012:user/a", false),
        ("ArnEquals", r#""arn:aws:iam::123456789012:user/?""#, "arn:aws:iam::123456789012:user/a", true),
        ("ArnEquals", r#""*""#, "arn:aws:iam::123456789012:user/a", true),
        ("ArnNotLike", r#""arn:aws:iam::*:user/*""#, "arn:aws:iam::123456789012:role/a", true),
        ("ArnNotEquals", r#""arn:aws:iam::*:user/*""#, "arn:aws:iam::123456789012:user/a", false),
    ];
    for (operator, policy, value, expected) in cases {
        let context = context(&[value]);
        for set in ["", "ForAnyValue:", "ForAllValues:"] {
            for suffix in ["", "IfExists"] {
                let condition = format!(r#""{set}{operator}{suffix}":{{"aws:sourceIDENTITY":{policy}}}"#);
                assert_eq!(both(&condition, &context), (expected, expected), "{condition} {value}");
            }
        }
    }
}

#[test]
fn absence() {
    let absent = Context::of(&OTHER);
    for (operator, expected) in [
        ("StringEquals", false),
        ("StringNotEquals", true),
        ("StringNotLike", true),
        ("StringEqualsIfExists", true),
        ("StringNotEqualsIfExists", true),
        ("ForAllValues:StringEquals", true),
        ("ForAllValues:StringNotEquals", true),
        ("ForAnyValue:StringEquals", false),
        ("ForAnyValue:StringNotEquals", false),
        ("ForAnyValue:StringEqualsIfExists", true),
    ] {
        for context in [&absent, &context(&[])] {
            let condition = format!(r#""{operator}":{{"aws:SourceIdentity":"a"}}"#);
            assert_eq!(both(&condition, context), (expected, expected), "{operator}");
        }
    }
    for (value, missing) in [("true", true), ("false", false), (r#"["true","false"]"#, true)] {
        let condition = format!(r#""Null":{{"aws:SourceIdentity":{value}}}"#);
        assert_eq!(both(&condition, &absent), (missing, missing), "{value}");
    }
    assert_eq!(both(r#""Null":{"aws:SourceIdentity":"false"}"#, &context(&["a"])), (true, true));
    assert_eq!(both(r#""Null":{"aws:SourceIdentity":"true"}"#, &context(&["a"])), (false, false));
}

#[test]
fn several_values() {
    let context = context(&["a", "b"]);
    for (operator, policy, allow, deny) in [
        ("ForAllValues:StringEquals", r#"["a","b","c"]"#, true, true),
        ("ForAllValues:StringEquals", r#"["a","c"]"#, false, false),
        ("ForAnyValue:StringEquals", r#"["a","c"]"#, true, true),
        ("ForAnyValue:StringEquals", r#"["c"]"#, false, false),
        ("ForAllValues:StringNotEquals", r#"["c"]"#, true, true),
        ("ForAllValues:StringNotEquals", r#"["a"]"#, false, false),
        ("ForAnyValue:StringNotEquals", r#"["a"]"#, true, true),
        ("ForAnyValue:StringNotEquals", r#"["a","b"]"#, false, false),
        // Without a set operator: an Allow needs all of them, a Deny any.
        ("StringEquals", r#""a""#, false, true),
        ("StringEquals", r#"["a","b"]"#, true, true),
        ("StringNotEquals", r#""a""#, false, true),
    ] {
        let condition = format!(r#""{operator}":{{"aws:SourceIdentity":{policy}}}"#);
        assert_eq!(both(&condition, &context), (allow, deny), "{condition}");
    }
}

#[test]
fn conditions_must_all_hold() {
    let context = context(&["a"]);
    let yes = r#""aws:SourceIdentity":"a""#;
    assert_eq!(both(&format!(r#""StringEquals":{{{yes},"aws:username":"other"}}"#), &context), (true, true));
    assert_eq!(both(&format!(r#""StringEquals":{{{yes},"aws:username":"x"}}"#), &context), (false, false));
    assert_eq!(
        both(&format!(r#""StringEquals":{{{yes}}},"Bool":{{"aws:ViaAWSService":"true"}}"#), &context),
        (false, false)
    );
    assert_eq!(both("", &context), (true, true));
}

#[test]
fn keys_that_nobody_knows_never_widen() {
    let context = context(&["a"]);
    for (condition, deny) in [
        (r#""StringEquals":{"kms:Typo":"a"}"#, false),
        (r#""StringNotEquals":{"kms:Typo":"a"}"#, true),
        (r#""StringEqualsIfExists":{"kms:Typo":"a"}"#, true),
        (r#""ForAllValues:StringEquals":{"kms:Typo":"a"}"#, true),
        (r#""ForAnyValue:StringEquals":{"kms:Typo":"a"}"#, false),
        (r#""Null":{"kms:Typo":"true"}"#, true),
        (r#""Null":{"kms:Typo":"false"}"#, false),
        (r#""Bool":{"s3:Anything":"true"}"#, false),
    ] {
        assert_eq!(both(condition, &context), (false, deny), "{condition}");
    }
}

#[test]
fn values_of_the_wrong_kind_never_widen() {
    let context = context(&["zzz"]);
    for (condition, deny) in [
        (r#""NumericEquals":{"aws:SourceIdentity":1}"#, false),
        (r#""NumericNotEquals":{"aws:SourceIdentity":1}"#, true),
        (r#""DateNotEquals":{"aws:SourceIdentity":1}"#, true),
        (r#""NotIpAddress":{"aws:SourceIdentity":"10.0.0.1"}"#, true),
        (r#""ArnNotEquals":{"aws:SourceIdentity":"arn:aws:iam::1:user/a"}"#, true),
        (r#""Bool":{"aws:SourceIdentity":"false"}"#, false),
        (r#""BinaryEquals":{"aws:SourceIdentity":"YWJj"}"#, false),
    ] {
        assert_eq!(both(condition, &context), (false, deny), "{condition}");
    }
}

#[test]
fn what_the_service_says_of_a_request() {
    let key = KeyFacts {
        account: ACCOUNT,
        spec: "SYMMETRIC_DEFAULT",
        usage: "ENCRYPT_DECRYPT",
        origin: "AWS_KMS",
        multi_region: false,
        aliases: vec!["alias/a", "alias/b"],
        tags: vec![("Project", "x")],
    };
    let mut context = Context::of(&OTHER)
        .at(1_577_836_800)
        .via(Some("10.1.2.3".parse().unwrap()), true, Some("boto3"))
        .in_region("us-east-1")
        .on_key(&key)
        .by_alias("alias/a")
        .with_encryption_context([("App", "x")])
        .with_tags([("Team", "t")]);
    context.set(context::VIA_SERVICE, ["mount.us-east-1.amazonaws.com"]);
    for condition in [
        r#""StringEquals":{"kms:CallerAccount":"123456789012","aws:username":"other","kms:keyspec":"SYMMETRIC_DEFAULT"}"#,
        r#""DateLessThan":{"aws:CurrentTime":"2020-01-01T00:00:01Z"},"DateGreaterThan":{"aws:EpochTime":"2019-12-31T23:59:59Z"}"#,
        r#""NumericGreaterThan":{"aws:EpochTime":1577836799}"#,
        r#""IpAddress":{"aws:SourceIp":"10.0.0.0/8"},"Bool":{"aws:SecureTransport":"true","kms:MultiRegion":"false"}"#,
        r#""StringLike":{"aws:UserAgent":"boto*","aws:RequestedRegion":"us-*"}"#,
        r#""ForAnyValue:StringEquals":{"kms:ResourceAliases":"alias/b"},"StringEquals":{"kms:RequestAlias":"alias/a"}"#,
        r#""StringEquals":{"kms:EncryptionContext:APP":"x","aws:ResourceTag/project":"x","aws:RequestTag/Team":"t"}"#,
        r#""ForAllValues:StringEquals":{"kms:EncryptionContextKeys":["App"],"aws:TagKeys":"Team"}"#,
        r#""ArnLike":{"aws:PrincipalArn":"arn:aws:iam::*:user/other"},"Null":{"aws:SourceVpc":"true"}"#,
        r#""Bool":{"aws:PrincipalIsAWSService":"false"},"StringEquals":{"aws:PrincipalType":"User"}"#,
        r#""StringEquals":{"kms:ViaService":"mount.us-east-1.amazonaws.com","kms:KeyOrigin":"AWS_KMS"}"#,
    ] {
        assert_eq!(both(condition, &context), (true, true), "{condition}");
    }
    assert_eq!(both(r#""ForAllValues:StringEquals":{"kms:EncryptionContextKeys":"app"}"#, &context), (false, false));
}
