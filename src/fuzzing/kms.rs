//! What the key service takes from clients before it knows them, and policies that they write: signatures, documents, tokens.

use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Uri};
use zeroize::Zeroizing;

use super::{Target, choice, halves};
use crate::crypto::secret::Secret32;
use crate::kms::policy::{Context, Document, Principal, Request, decide, grant, locks_out};
use crate::kms::sigv4::{AuthError, Head, Verifier};

pub const TARGETS: &[Target] = &[
    Target { name: "kms_policy", run: kms_policy },
    Target { name: "kms_signature", run: kms_signature },
    Target { name: "kms_token", run: kms_token },
];

const KEY: &str = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const fn user(account: &'static str, arn: &'static str, is_root: bool, is_service: bool) -> Principal<'static> {
    Principal { account, arn, is_root, is_service }
}
const CALLERS: [Principal; 4] = [
    user("123456789012", "arn:aws:iam::123456789012:root", true, false),
    user("123456789012", "arn:aws:iam::123456789012:user/ABC", false, false),
    user("123456789012", "arn:aws:iam::123456789012:user/mount", false, true),
    user("999999999999", "arn:aws:iam::999999999999:user/eve", false, false),
];

/// A document and a text that stands in the request. Whatever they are: the account's Deny wins, a user's policy alone opens
/// no key, and a stranger without a policy of his own is never let in.
fn kms_policy(input: &[u8]) {
    let (document, value) = halves(input);
    let (Ok(text), Ok(value)) = (std::str::from_utf8(document), std::str::from_utf8(value)) else { return };
    let mut context = Context::default();
    for key in ["aws:username", "aws:SourceIp", "aws:SourceArn", "kms:RequestAlias", "kms:RotationPeriodInDays"] {
        context.set(key, [value]);
    }
    context.set("kms:ResourceAliases", value.split(','));
    let context = context.with_encryption_context([(value, value)]);
    let shut = r#"{"Statement":{"Effect":"Deny","Principal":"*","Action":"*","Resource":"*"}}"#;
    let shut = Document::parse_key_policy(shut).expect("it is well formed");
    let key_policy = Document::parse_key_policy(text).ok();
    let user_policy = Document::parse_user_policy(text).ok();
    for principal in CALLERS {
        for action in ["kms:Decrypt", "kms:PutKeyPolicy"] {
            let request = Request { principal, action, resource: KEY, context: context.clone() };
            if let Some(policy) = &key_policy {
                let decision = decide(&request, Some(policy), &[], &[]);
                assert_eq!(decision, decide(&request, Some(policy), &[], &[]));
                assert!(principal.account == "123456789012" || !decision.is_allowed(), "a stranger is let in");
                assert!(decision.is_allowed() == decision.denial(&request).is_none());
                if action == "kms:PutKeyPolicy" {
                    assert_eq!(locks_out(policy, &principal, KEY, &context, &[]), !decision.is_allowed());
                }
            }
            if let Some(policy) = &user_policy {
                assert!(!decide(&request, Some(&shut), &[policy], &[]).is_allowed(), "a Deny does not win");
            }
        }
    }
}

/// A query, header lines and a body. How 0: no signature can be right, since nobody knows the secret. Else a right signature
/// is put in place of `@`, if the rest of the claim is well formed, and then no other body is accepted with it.
fn kms_signature(input: &[u8]) {
    const NOW: u64 = 1_440_938_160;
    let (how, rest) = choice(input);
    let (head, body) = halves(rest);
    let text = String::from_utf8_lossy(head).into_owned();
    let verifier = Verifier::new("us-east-1");
    let secret = |_: &str| Some(Zeroizing::new("a secret that is in no corpus".to_owned()));
    let Some((uri, headers)) = parse(&text) else { return };
    let parts = Head { method: &Method::POST, uri: &uri, headers: &headers };
    let first = verifier.verify(parts, body, NOW, &secret);
    assert!(first.is_err(), "a signature is accepted that nobody made");
    if how & 1 == 0 {
        return;
    }
    let zeros = text.replace('@', &"0".repeat(64));
    let Some((uri, headers)) = parse(&zeros) else { return };
    let Some(signature) = verifier.signature_of(Head { uri: &uri, headers: &headers, ..parts }, body, &secret(""))
    else {
        return;
    };
    let Some((uri, headers)) = parse(&text.replace('@', &signature)) else { return };
    let parts = Head { method: &Method::POST, uri: &uri, headers: &headers };
    let second = verifier.verify(parts, body, NOW, &secret);
    // A signature elsewhere in the text changes what is signed: that is refused, and nothing else may be.
    assert!(
        second.is_ok() || text.matches('@').count() != 1 || second != Err(AuthError::Mismatch) || !tail(&text),
        "{text}"
    );
    if second.is_ok() {
        let other = [body, b" "].concat();
        assert!(verifier.verify(parts, &other, NOW, &secret).is_err(), "another body is accepted");
        let method = Head { method: &Method::PUT, ..parts };
        assert!(verifier.verify(method, body, NOW, &secret).is_err(), "another method is accepted");
    }
}
/// Whether the mark stands where a signature belongs.
fn tail(text: &str) -> bool {
    text.contains("Signature=@")
}
/// The first line is the path with its query, each following one a header.
fn parse(text: &str) -> Option<(Uri, HeaderMap)> {
    let mut lines = text.split('\n');
    let uri: Uri = lines.next()?.parse().ok()?;
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_str(value.trim()).ok()?);
    }
    Some((uri, headers))
}

/// A token that this service did not make names nothing.
fn kms_token(input: &[u8]) {
    let (how, rest) = choice(input);
    let text = if how & 1 == 0 {
        data_encoding::BASE64URL_NOPAD.encode(rest)
    } else {
        String::from_utf8_lossy(rest).into_owned()
    };
    assert_eq!(grant::read_token(&Secret32::from_bytes([0x5e; 32]), &text), None);
}
