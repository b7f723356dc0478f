//! What is stored, as serde types: keys, aliases, grants, users. Secrets in them are wrapped already. Knows no database.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::kms::material::{KeySpec, KeyUsage};
use crate::kms::policy::Grant;

/// Times are milliseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// A UUID.
    pub id: String,
    pub created: i64,
    pub description: String,
    pub usage: KeyUsage,
    pub spec: KeySpec,
    pub origin: Origin,
    pub manager: Manager,
    pub enabled: bool,
    pub deletion: Option<Deletion>,
    /// In the order in which they became current.
    pub materials: Vec<MaterialRecord>,
    /// The id of the material that encrypts; `None` before the first import.
    pub current: Option<String>,
    pub policy: String,
    pub tags: BTreeMap<String, String>,
    pub rotation: Option<Rotation>,
    pub on_demand_rotations: u32,
    pub last_use: Option<LastUse>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    #[serde(rename = "AWS_KMS")]
    Service,
    #[serde(rename = "EXTERNAL")]
    External,
}

impl Origin {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "AWS_KMS",
            Self::External => "EXTERNAL",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Manager {
    #[serde(rename = "AWS")]
    Service,
    #[serde(rename = "CUSTOMER")]
    Customer,
}

impl Manager {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "AWS",
            Self::Customer => "CUSTOMER",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    pub date: i64,
    pub window_days: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    pub period_days: i64,
    pub next: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastUse {
    pub operation: String,
    pub time: i64,
    pub request_id: String,
    pub event_id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaterialRecord {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Base64; `None` where it was imported and is deleted or expired.
    pub wrapped: Option<String>,
    /// When it became current; `None` for material that was imported for a rotation that has not happened.
    pub current_since: Option<i64>,
    /// What made it current; `None` for the first.
    pub rotation: Option<RotationType>,
    pub import: Option<Import>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RotationType {
    #[serde(rename = "AUTOMATIC")]
    Automatic,
    #[serde(rename = "ON_DEMAND")]
    OnDemand,
}

impl RotationType {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Automatic => "AUTOMATIC",
            Self::OnDemand => "ON_DEMAND",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    pub valid_to: Option<i64>,
    pub description: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AliasRecord {
    /// With `alias/` in front.
    pub name: String,
    pub target: String,
    pub created: i64,
    pub updated: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRecord {
    pub name: String,
    pub created: i64,
    /// A service principal.
    pub service: bool,
    pub enabled: bool,
    pub access_keys: Vec<AccessKeyRecord>,
    pub policy: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessKeyRecord {
    pub id: String,
    /// Base64.
    pub wrapped: String,
    pub created: i64,
    pub active: bool,
}

/// One stored thing. Its name says where it lies, so that it is found again and nothing else is taken for it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Record {
    Service(ServiceRecord),
    Key(KeyRecord),
    Alias(AliasRecord),
    Grant(Grant),
    User(UserRecord),
    /// How far the trail had come when it was last made durable.
    TrailHead(TrailHead),
}

/// What was fixed when the service was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRecord {
    pub id: String,
    pub account: String,
    pub region: String,
    pub created: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct TrailHead {
    /// Records so far.
    pub sequence: u64,
    /// The last one's hash, hexadecimal; empty where there is none.
    pub hash: String,
    /// Records up to this one are not expected in this directory: it was restored from a backup made then.
    pub base: u64,
    pub base_hash: String,
}

impl Record {
    pub fn name(&self) -> String {
        match self {
            Self::Service(_) => "service".into(),
            Self::Key(key) => format!("key/{}", key.id),
            Self::Alias(alias) => alias.name.clone(),
            Self::Grant(grant) => grant_name(&grant.key_id, &grant.id),
            Self::User(user) => format!("user/{}", user.name),
            Self::TrailHead(_) => "trail-head".into(),
        }
    }
}

pub fn grant_name(key: &str, id: &str) -> String {
    format!("grant/{key}/{id}")
}
