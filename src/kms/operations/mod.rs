//! The operations of the API, one file a group: found by name, checked, run, recorded. Owns this order; must not know HTTP.

mod aliases;
mod call;
mod cipher;
mod data_keys;
mod grants;
mod import;
mod keys;
mod lifecycle;
mod mac;
mod managed;
mod policies;
mod random;
mod rotation;
mod sign;
mod tags;

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Map, Value};

use call::Call;
pub use managed::ALIAS as MANAGED_ALIAS;
use managed::service_name;
pub(super) use rotation::rotate;

use super::Service;
use super::audit::{Actor, Event};
use super::policy::Principal;
use super::view::User;
use super::wire::{ApiError, Input, catalogue, shape::Kind};
use crate::crypto::random::array;

/// Who calls.
#[derive(Clone)]
pub struct Caller {
    pub user: Arc<User>,
    /// `None` where the account root acts through the service's directory, as the process with this user id.
    pub access_key: Result<String, u32>,
}

impl Caller {
    pub fn principal<'a>(&'a self, account: &'a str) -> Principal<'a> {
        Principal { account, arn: &self.user.arn, is_root: self.user.is_root(), is_service: self.user.record.service }
    }

    pub fn actor(&self) -> Actor {
        match &self.access_key {
            Ok(access_key_id) => Actor::Principal {
                arn: self.user.arn.clone(),
                name: self.user.record.name.clone(),
                access_key_id: access_key_id.clone(),
                root: self.user.is_root(),
                service: self.user.record.service,
            },
            Err(uid) => Actor::Administrator { uid: *uid },
        }
    }
}

/// How a request came.
#[derive(Debug, Clone)]
pub struct Origin {
    /// `None` for the service's own socket.
    pub address: Option<IpAddr>,
    pub user_agent: String,
    /// Its version, where the request came over TLS.
    pub tls: Option<&'static str>,
    pub request_id: String,
}

/// What an operation costs the thread that runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// Microseconds, no disk.
    Light,
    /// Milliseconds: RSA, elliptic curves, long lists.
    Heavy,
    /// It changes the store: waits for others that do, and for the disk.
    Change,
    /// Both: it works first, and then takes its turn among the changes.
    HeavyChange,
}

pub struct Operation {
    pub name: &'static str,
    run: fn(&Call<'_>) -> Result<Value, ApiError>,
    pub cost: Cost,
    /// As CloudTrail classes it.
    read_only: bool,
}

const fn light(name: &'static str, run: fn(&Call<'_>) -> Result<Value, ApiError>) -> Operation {
    Operation { name, run, cost: Cost::Light, read_only: true }
}

const fn heavy(name: &'static str, run: fn(&Call<'_>) -> Result<Value, ApiError>) -> Operation {
    Operation { name, run, cost: Cost::Heavy, read_only: true }
}

const fn change(name: &'static str, run: fn(&Call<'_>) -> Result<Value, ApiError>) -> Operation {
    Operation { name, run, cost: Cost::Change, read_only: false }
}

impl Operation {
    /// It may make an RSA key, which takes up to seconds.
    pub fn is_slow(&self) -> bool {
        self.name.starts_with("GenerateDataKeyPair") || ["CreateKey", "GetParametersForImport"].contains(&self.name)
    }
}

/// In alphabetical order.
static OPERATIONS: &[Operation] = &[
    change("CancelKeyDeletion", lifecycle::cancel_key_deletion),
    change("CreateAlias", aliases::create_alias),
    change("CreateGrant", grants::create_grant),
    Operation { cost: Cost::HeavyChange, ..change("CreateKey", keys::create_key) },
    light("Decrypt", cipher::decrypt),
    change("DeleteAlias", aliases::delete_alias),
    change("DeleteImportedKeyMaterial", import::delete_imported_key_material),
    heavy("DeriveSharedSecret", sign::derive_shared_secret),
    light("DescribeKey", keys::describe_key),
    change("DisableKey", lifecycle::disable_key),
    change("DisableKeyRotation", rotation::disable_key_rotation),
    change("EnableKey", lifecycle::enable_key),
    change("EnableKeyRotation", rotation::enable_key_rotation),
    light("Encrypt", cipher::encrypt),
    light("GenerateDataKey", data_keys::generate_data_key),
    heavy("GenerateDataKeyPair", data_keys::generate_data_key_pair),
    heavy("GenerateDataKeyPairWithoutPlaintext", data_keys::generate_data_key_pair_without_plaintext),
    light("GenerateDataKeyWithoutPlaintext", data_keys::generate_data_key_without_plaintext),
    light("GenerateMac", mac::generate_mac),
    light("GenerateRandom", random::generate_random),
    light("GetKeyLastUsage", keys::get_key_last_usage),
    light("GetKeyPolicy", policies::get_key_policy),
    light("GetKeyRotationStatus", rotation::get_key_rotation_status),
    heavy("GetParametersForImport", import::get_parameters_for_import),
    heavy("GetPublicKey", sign::get_public_key),
    change("ImportKeyMaterial", import::import_key_material),
    heavy("ListAliases", aliases::list_aliases),
    heavy("ListGrants", grants::list_grants),
    light("ListKeyPolicies", policies::list_key_policies),
    heavy("ListKeyRotations", rotation::list_key_rotations),
    heavy("ListKeys", keys::list_keys),
    light("ListResourceTags", tags::list_resource_tags),
    heavy("ListRetirableGrants", grants::list_retirable_grants),
    change("PutKeyPolicy", policies::put_key_policy),
    light("ReEncrypt", cipher::re_encrypt),
    change("RetireGrant", grants::retire_grant),
    change("RevokeGrant", grants::revoke_grant),
    change("RotateKeyOnDemand", rotation::rotate_key_on_demand),
    change("ScheduleKeyDeletion", lifecycle::schedule_key_deletion),
    heavy("Sign", sign::sign),
    change("TagResource", tags::tag_resource),
    change("UntagResource", tags::untag_resource),
    change("UpdateAlias", aliases::update_alias),
    change("UpdateKeyDescription", lifecycle::update_key_description),
    heavy("Verify", sign::verify),
    light("VerifyMac", mac::verify_mac),
];

/// What a request asks for by its name.
pub enum Asked {
    Served(&'static Operation),
    /// In the API, but not in this service.
    Unsupported(&'static str),
    Unknown,
}

pub fn find(name: &str) -> Asked {
    if let Ok(at) = OPERATIONS.binary_search_by(|operation| operation.name.cmp(name)) {
        return Asked::Served(&OPERATIONS[at]);
    }
    match catalogue::UNSUPPORTED.iter().find(|known| **known == name) {
        Some(known) => Asked::Unsupported(known),
        None => Asked::Unknown,
    }
}

/// What a request costs: more than its operation's cost where its text says that RSA is at work.
pub fn cost(operation: &Operation, body: &[u8]) -> Cost {
    const RSA: &[u8] = b"RSAES_OAEP";
    // A symmetric request never names another algorithm; what is guessed wrongly is only answered by another thread.
    let encryption = ["Decrypt", "Encrypt", "ReEncrypt"].contains(&operation.name);
    if encryption && body.windows(RSA.len()).any(|window| window == RSA) { Cost::Heavy } else { operation.cost }
}

impl Service {
    /// Runs a request of a caller whose signature has been verified, and records it. `Value::Null`: an empty body.
    pub fn perform(
        &self,
        operation: &'static Operation,
        body: &[u8],
        caller: &Caller,
        origin: &Origin,
    ) -> Result<Value, ApiError> {
        let members = catalogue::input(operation.name).unwrap_or(&[]);
        let input = match Input::parse(body, members) {
            Ok(input) => input,
            Err(error) => {
                let call =
                    Call::new(self, operation, &Input::new(Map::new()), caller, origin, None).event(Some(&error));
                self.record_event(&call);
                return Err(error);
            }
        };
        if let Err(error) = self.make_managed_key_if_first_used(&input, caller) {
            log::error!("code=managed-key {} could not be made: {error}", managed::ALIAS);
        }
        let writer = (operation.cost == Cost::Change).then(|| self.writer());
        let call = Call::new(self, operation, &input, caller, origin, writer);
        let result = (operation.run)(&call);
        if !call.is_recorded() {
            self.record_event(&call.event(result.as_ref().err()));
        }
        result
    }

    /// An operation that this service does not offer: refused, and recorded.
    pub fn refuse(&self, name: &'static str, caller: &Caller, origin: &Origin) -> ApiError {
        let error = ApiError::unsupported(format!("{name} is not supported by this service."));
        let event = Event {
            id: new_uuid(),
            request_id: origin.request_id.clone(),
            time: self.now(),
            name,
            actor: caller.actor(),
            source: source(origin),
            user_agent: origin.user_agent.clone(),
            request: Value::Null,
            response: Value::Null,
            additional: Map::new(),
            read_only: false,
            resources: Vec::new(),
            error: Some((error.code.into(), error.message.clone().unwrap_or_default())),
            tls: origin.tls,
        };
        self.record_event(&event);
        error
    }
}

pub fn source(origin: &Origin) -> String {
    origin.address.map_or_else(|| "admin socket".into(), |address| address.to_canonical().to_string())
}

/// The members of a request as the trail shows them: names with a small first letter; no blobs, no grant tokens.
fn shown(operation: &str, input: &Input) -> Value {
    let mut shown = Map::new();
    for member in catalogue::input(operation).unwrap_or(&[]) {
        if matches!(member.kind, Kind::Blob { .. }) || ["GrantTokens", "GrantToken", "Recipient"].contains(&member.name)
        {
            continue;
        }
        if let Some(value) = input.members().get(member.name).filter(|value| !value.is_null()) {
            shown.insert(small(member.name), value.clone());
        }
    }
    if shown.is_empty() { Value::Null } else { Value::Object(shown) }
}

fn small(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map(|c| c.to_ascii_lowercase()).into_iter().chain(chars).collect()
}

/// A random UUID (RFC 9562, version 4).
pub fn new_uuid() -> String {
    let mut bytes: [u8; 16] = array();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    super::material::key_id_text(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_of_the_model_is_served_or_refused() {
        assert!(OPERATIONS.is_sorted_by_key(|operation| operation.name));
        let served: Vec<&str> = OPERATIONS.iter().map(|operation| operation.name).collect();
        let shapes: Vec<&str> = catalogue::INPUTS.iter().map(|(name, _)| *name).collect();
        assert_eq!(served, shapes);
        assert_eq!(served.len() + catalogue::UNSUPPORTED.len(), 54);
        assert!(matches!(find("ReplicateKey"), Asked::Unsupported("ReplicateKey")));
        assert!(matches!(find("replicatekey"), Asked::Unknown));
    }

    #[test]
    fn the_document_has_a_row_for_each_operation() {
        let document = include_str!("../../../doc/KMS.md");
        let row = |name: &str| document.lines().find(|line| line.starts_with(&format!("| {name} |")));
        for operation in OPERATIONS {
            assert!(row(operation.name).is_some_and(|line| !line.contains("| absent |")), "{}", operation.name);
        }
        for name in catalogue::UNSUPPORTED {
            assert!(row(name).is_some_and(|line| line.contains("| absent |")), "{name}");
        }
    }
}
