//! Tests of the decision: documented cases, the console's policy, and a naive reading of the rules as the oracle.

mod console;
mod documents;
mod grants;
mod operators;
mod properties;
mod reference;

use super::*;

const ACCOUNT: &str = "123456789012";
const KEY: &str = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const ROOT: Principal =
    Principal { account: ACCOUNT, arn: "arn:aws:iam::123456789012:root", is_root: true, is_service: false };
const XYZ: Principal = user("arn:aws:iam::123456789012:user/XYZ");
const ABC: Principal = user("arn:aws:iam::123456789012:user/ABC");
const OTHER: Principal = user("arn:aws:iam::123456789012:user/other");
const MOUNT: Principal =
    Principal { account: ACCOUNT, arn: "arn:aws:iam::123456789012:user/mount", is_root: false, is_service: true };
const FOREIGN: Principal =
    Principal { account: "999999999999", arn: "arn:aws:iam::999999999999:user/eve", is_root: false, is_service: false };

const fn user(arn: &str) -> Principal<'_> {
    Principal { account: ACCOUNT, arn, is_root: false, is_service: false }
}
fn request<'a>(principal: Principal<'a>, action: &'a str, context: Context) -> Request<'a> {
    Request { principal, action, resource: KEY, context }
}
/// A key policy of these statements, with braces left out around each.
fn key_policy(statements: &[&str]) -> Document {
    let statements: Vec<String> = statements.iter().map(|s| format!("{{{s}}}")).collect();
    let text = format!(r#"{{"Version":"2012-10-17","Statement":[{}]}}"#, statements.join(","));
    Document::parse_key_policy(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
fn user_policy(statements: &[&str]) -> Document {
    let statements: Vec<String> = statements.iter().map(|s| format!("{{{s}}}")).collect();
    let text = format!(r#"{{"Version":"2012-10-17","Statement":[{}]}}"#, statements.join(","));
    Document::parse_user_policy(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
fn allowed(request: &Request, key: &Document, user: &[&Document]) -> bool {
    decide(request, Some(key), user, &[]).is_allowed()
}
