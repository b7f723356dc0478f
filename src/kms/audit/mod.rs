//! The audit trail: what a record says, in CloudTrail's names. Knows neither operations nor the disk.

mod lines;
pub mod trail;
pub mod verify;

use serde::Serialize;
use serde_json::{Map, Value};

use super::wire::time::rfc3339;

/// One answered request, or one thing that the service did by itself. Holds no plaintext, ciphertext, key or secret.
pub struct Event {
    pub id: String,
    pub request_id: String,
    /// Milliseconds since the epoch.
    pub time: i64,
    pub name: &'static str,
    pub actor: Actor,
    pub source: String,
    pub user_agent: String,
    pub request: Value,
    pub response: Value,
    pub additional: Map<String, Value>,
    pub read_only: bool,
    /// Of keys and aliases.
    pub resources: Vec<String>,
    pub error: Option<(String, String)>,
    /// Its version, where the request came over TLS.
    pub tls: Option<&'static str>,
}

/// Who asked.
#[derive(Debug, Clone)]
pub enum Actor {
    /// An access key was used.
    Principal { arn: String, name: String, access_key_id: String, root: bool, service: bool },
    /// The account root, at the socket in the service's directory or with the directory itself; the process's user id.
    Administrator { uid: u32 },
    /// Nobody was recognised; the access key id that was claimed.
    Unknown { access_key_id: Option<String> },
    /// The service by itself: rotation, expiry, deletion after its window.
    Service,
}

/// What every record of one service shares.
#[derive(Debug, Clone)]
pub struct Place {
    pub account: String,
    pub region: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    event_version: &'static str,
    user_identity: Value,
    event_time: String,
    event_source: &'static str,
    event_name: &'a str,
    aws_region: &'a str,
    #[serde(rename = "sourceIPAddress")]
    source: &'a str,
    user_agent: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<&'a str>,
    request_parameters: &'a Value,
    response_elements: &'a Value,
    #[serde(skip_serializing_if = "Map::is_empty")]
    additional_event_data: &'a Map<String, Value>,
    #[serde(rename = "requestID")]
    request_id: &'a str,
    #[serde(rename = "eventID")]
    event_id: &'a str,
    read_only: bool,
    resources: Vec<Resource<'a>>,
    event_type: &'static str,
    management_event: bool,
    recipient_account_id: &'a str,
    event_category: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_details: Option<Value>,
}

#[derive(Serialize)]
struct Resource<'a> {
    #[serde(rename = "accountId")]
    account: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(rename = "ARN")]
    arn: &'a str,
}

/// Longest user agent that is recorded, in bytes.
const USER_AGENT_MAX: usize = 512;

impl Event {
    /// One line of JSON without its newline. CloudTrail's record version 1.11.
    pub fn to_json(&self, place: &Place) -> Vec<u8> {
        let resources = self.resources.iter().map(|arn| Resource {
            account: &place.account,
            kind: if arn.contains(":alias/") { "AWS::KMS::Alias" } else { "AWS::KMS::Key" },
            arn,
        });
        let written = Written {
            event_version: "1.11",
            user_identity: self.actor.identity(place),
            event_time: rfc3339(self.time),
            event_source: "kms.amazonaws.com",
            event_name: self.name,
            aws_region: &place.region,
            source: &self.source,
            user_agent: cut(&self.user_agent, USER_AGENT_MAX),
            error_code: self.error.as_ref().map(|(code, _)| code.as_str()),
            error_message: self.error.as_ref().map(|(_, text)| text.as_str()).filter(|text| !text.is_empty()),
            request_parameters: &self.request,
            response_elements: &self.response,
            additional_event_data: &self.additional,
            request_id: &self.request_id,
            event_id: &self.id,
            read_only: self.read_only,
            resources: resources.collect(),
            event_type: if matches!(self.actor, Actor::Service) { "AwsServiceEvent" } else { "AwsApiCall" },
            management_event: true,
            recipient_account_id: &place.account,
            event_category: "Management",
            tls_details: self.tls.map(|version| serde_json::json!({"tlsVersion": version})),
        };
        // Texts and numbers always have a JSON form.
        serde_json::to_vec(&written).unwrap_or_default()
    }
}

impl Actor {
    fn identity(&self, place: &Place) -> Value {
        let account = &place.account;
        match self {
            Self::Principal { arn, name, access_key_id, root, service } => {
                let kind = match (root, service) {
                    (true, _) => "Root",
                    (false, true) => "AWSService",
                    (false, false) => "IAMUser",
                };
                let mut identity = serde_json::json!({
                    "type": kind, "principalId": if *root { account } else { name }, "arn": arn, "accountId": account,
                    "accessKeyId": access_key_id,
                });
                if !root {
                    identity["userName"] = name.as_str().into();
                }
                identity
            }
            Self::Administrator { uid } => serde_json::json!({
                "type": "Root", "principalId": account, "arn": root_arn(account), "accountId": account,
                "invokedBy": format!("envelopefs kms (uid {uid})"),
            }),
            Self::Unknown { access_key_id } => serde_json::json!({"type": "Unknown", "accessKeyId": access_key_id}),
            Self::Service => {
                serde_json::json!({"type": "AWSService", "accountId": account, "invokedBy": "envelopefs kms"})
            }
        }
    }
}

pub fn root_arn(account: &str) -> String {
    format!("arn:aws:iam::{account}:root")
}

fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}
