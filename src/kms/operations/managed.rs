//! The key that the service manages for services: made when one first asks for it, with a policy of its own. Nobody else may
//! use it, and nobody may disable or delete it, since its policy allows that to nobody.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use super::keys::add_material;
use super::rotation::PERIOD_DEFAULT;
use super::{Caller, new_uuid};
use crate::kms::material::{KeySpec, KeyUsage};
use crate::kms::store::records::{AliasRecord, KeyRecord, Manager, Origin, Rotation};
use crate::kms::view::{Piece, alias_arn};
use crate::kms::wire::time::DAY;
use crate::kms::wire::{ApiError, Input};
use crate::kms::{Edit, Service};

pub const ALIAS: &str = "alias/aws/envelopefs";

/// What `kms:ViaService` is where a service principal calls.
pub fn service_name(region: &str) -> String {
    format!("envelopefs.{region}.amazonaws.com")
}

impl Service {
    /// Where a service principal names the alias and it is not there yet.
    pub(super) fn make_managed_key_if_first_used(&self, input: &Input, caller: &Caller) -> Result<(), ApiError> {
        if !caller.user.record.service {
            return Ok(());
        }
        let arn = alias_arn(&self.record, ALIAS);
        let named = ["KeyId", "SourceKeyId", "DestinationKeyId"]
            .into_iter()
            .any(|member| input.text(member).is_some_and(|name| name == ALIAS || name == arn));
        if !named || self.view().aliases.contains_key(ALIAS) {
            return Ok(());
        }
        let writer = self.writer();
        if self.view().aliases.contains_key(ALIAS) {
            return Ok(());
        }
        let now = self.now();
        let mut record = KeyRecord {
            id: new_uuid(),
            created: now,
            description: "Default key of envelopefs mounts that name no other".into(),
            usage: KeyUsage::EncryptDecrypt,
            spec: KeySpec::SymmetricDefault,
            origin: Origin::Service,
            manager: Manager::Service,
            enabled: true,
            deletion: None,
            materials: Vec::new(),
            current: None,
            policy: self.managed_policy(),
            tags: BTreeMap::new(),
            rotation: Some(Rotation { period_days: PERIOD_DEFAULT, next: now + PERIOD_DEFAULT * DAY }),
            on_demand_rotations: 0,
            last_use: None,
        };
        add_material(&mut record, self.store().keys(), now).map_err(|_| ApiError::internal())?;
        let key = self.key(record, None)?;
        let alias = AliasRecord { name: ALIAS.into(), target: key.record.id.clone(), created: now, updated: now };
        let event = self.own_event(
            "CreateManagedKey",
            json!({"aliasName": ALIAS, "firstUsedBy": caller.user.arn}),
            vec![key.arn.clone(), arn],
        );
        let edit = Edit { put: vec![Piece::Key(Arc::new(key)), Piece::Alias(alias)], remove: Vec::new() };
        self.change(&writer, edit, &event)
    }

    fn managed_policy(&self) -> String {
        let (account, region) = (&self.record.account, &self.record.region);
        json!({
            "Version": "2012-10-17",
            "Id": "auto-envelopefs-1",
            "Statement": [
                {
                    "Sid": "Allow access through envelopefs for all principals in the account that are authorized to use envelopefs",
                    "Effect": "Allow",
                    "Principal": {"AWS": "*"},
                    "Action": ["kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:CreateGrant", "kms:DescribeKey"],
                    "Resource": "*",
                    "Condition": {"StringEquals": {"kms:CallerAccount": account, "kms:ViaService": service_name(region)}}
                },
                {
                    "Sid": "Allow direct access to key metadata to the account",
                    "Effect": "Allow",
                    "Principal": {"AWS": format!("arn:aws:iam::{account}:root")},
                    "Action": ["kms:Describe*", "kms:Get*", "kms:List*", "kms:RevokeGrant"],
                    "Resource": "*"
                }
            ]
        })
        .to_string()
    }
}
