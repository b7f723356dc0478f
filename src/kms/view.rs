//! Everything the service decides by, in memory: keys with their opened material, aliases, grants, users. Owns states of keys;
//! must not know requests. What is here is what the store holds: it changes after a transaction, before its answer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use data_encoding::{BASE64, HEXLOWER};
use zeroize::Zeroizing;

use super::material::{Material, MaterialId};
use super::policy::{Document, Grant};
use super::store::StoreError;
use super::store::records::{AliasRecord, KeyRecord, Manager, Record, ServiceRecord, TrailHead, UserRecord};
use super::store::sealing::StoreKeys;

/// What may be done with a key, at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    Enabled,
    Disabled,
    PendingDeletion,
    PendingImport,
}

impl KeyState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "Enabled",
            Self::Disabled => "Disabled",
            Self::PendingDeletion => "PendingDeletion",
            Self::PendingImport => "PendingImport",
        }
    }
}

/// One key as it is now. Never altered: a change makes another one.
pub struct Key {
    pub record: KeyRecord,
    pub arn: String,
    pub policy: Document,
    materials: Vec<(MaterialId, Arc<Material>)>,
}

impl Key {
    /// Opens what the record wraps. `known`: material that is open already.
    pub fn new(
        record: KeyRecord,
        service: &ServiceRecord,
        keys: &StoreKeys,
        known: Option<&Key>,
    ) -> Result<Self, StoreError> {
        let policy = Document::parse(&record.policy)
            .map_err(|_| StoreError::damaged(format!("the policy of key {} cannot be read", record.id)))?;
        let mut materials = Vec::new();
        for material in &record.materials {
            let Some(wrapped) = &material.wrapped else { continue };
            let id = material_id(&material.id)?;
            let open = known.and_then(|key| key.materials.iter().find(|(known, _)| *known == id));
            let open = match open {
                Some((_, open)) => open.clone(),
                None => {
                    let wrapped = BASE64.decode(wrapped.as_bytes()).map_err(|_| unreadable(&record.id))?;
                    let context = wrap_context(&record, &material.id);
                    let bytes = keys.unwrap(&context, &wrapped).map_err(|_| unreadable(&record.id))?;
                    Arc::new(Material::from_bytes(record.spec, &bytes).map_err(|_| unreadable(&record.id))?)
                }
            };
            materials.push((id, open));
        }
        let arn = key_arn(service, &record.id);
        Ok(Self { record, arn, policy, materials })
    }

    pub fn state(&self, now: i64) -> KeyState {
        if self.record.deletion.is_some() {
            KeyState::PendingDeletion
        } else if !self.has_all_material(now) {
            KeyState::PendingImport
        } else if self.record.enabled {
            KeyState::Enabled
        } else {
            KeyState::Disabled
        }
    }

    /// The window has passed: to everybody the key is gone, whether it has been swept already or not.
    pub fn is_gone(&self, now: i64) -> bool {
        self.record.deletion.as_ref().is_some_and(|deletion| deletion.date <= now)
    }

    /// Every material that was ever current can be used: one that is missing makes the whole key unusable, as in AWS.
    fn has_all_material(&self, now: i64) -> bool {
        self.record.current.is_some()
            && self
                .record
                .materials
                .iter()
                .filter(|m| m.current_since.is_some())
                .all(|m| m.wrapped.is_some() && m.import.as_ref().and_then(|i| i.valid_to).is_none_or(|end| end > now))
    }

    /// What encrypts, signs, makes MACs.
    pub fn current(&self) -> Option<(&MaterialId, &Arc<Material>)> {
        let id = material_id(self.record.current.as_deref()?).ok()?;
        self.materials.iter().find(|(known, _)| *known == id).map(|(id, material)| (id, material))
    }

    pub fn material(&self, id: &MaterialId) -> Option<&Arc<Material>> {
        self.materials.iter().find(|(known, _)| known == id).map(|(_, material)| material)
    }

    pub fn is_managed(&self) -> bool {
        self.record.manager == Manager::Service
    }
}

/// What wrapped material is bound to.
pub fn wrap_context<'a>(record: &'a KeyRecord, material: &'a str) -> [&'a [u8]; 4] {
    [b"key material", record.id.as_bytes(), material.as_bytes(), record.spec.as_str().as_bytes()]
}

pub fn access_key_context<'a>(user: &'a str, id: &'a str) -> [&'a [u8]; 3] {
    [b"secret access key", user.as_bytes(), id.as_bytes()]
}

pub fn material_id(text: &str) -> Result<MaterialId, StoreError> {
    HEXLOWER
        .decode(text.as_bytes())
        .ok()
        .and_then(|id| id.try_into().ok())
        .ok_or_else(|| StoreError::damaged("a material's id cannot be read"))
}

fn unreadable(key: &str) -> StoreError {
    StoreError::damaged(format!("the material of key {key} does not open: the store is damaged"))
}

pub fn key_arn(service: &ServiceRecord, id: &str) -> String {
    format!("arn:aws:kms:{}:{}:key/{id}", service.region, service.account)
}

/// `name` has `alias/` in front.
pub fn alias_arn(service: &ServiceRecord, name: &str) -> String {
    format!("arn:aws:kms:{}:{}:{name}", service.region, service.account)
}

/// The user that stands for the account itself.
pub const ROOT: &str = "root";

/// Somebody who may call.
pub struct User {
    pub record: UserRecord,
    pub arn: String,
    pub policies: Vec<Document>,
    secrets: Vec<(String, Zeroizing<String>)>,
}

impl User {
    pub fn new(record: UserRecord, service: &ServiceRecord, keys: &StoreKeys) -> Result<Self, StoreError> {
        let damaged = |what: &str| StoreError::damaged(format!("{what} of user {} cannot be read", record.name));
        let policies = match &record.policy {
            Some(policy) => vec![Document::parse(policy).map_err(|_| damaged("the policy"))?],
            None => Vec::new(),
        };
        let mut secrets = Vec::new();
        for key in &record.access_keys {
            let wrapped = BASE64.decode(key.wrapped.as_bytes()).map_err(|_| damaged("an access key"))?;
            let secret = keys
                .unwrap(&access_key_context(&record.name, &key.id), &wrapped)
                .map_err(|_| damaged("an access key"))?;
            let secret = std::str::from_utf8(&secret).map_err(|_| damaged("an access key"))?.to_owned();
            secrets.push((key.id.clone(), Zeroizing::new(secret)));
        }
        let arn = user_arn(&service.account, &record.name);
        Ok(Self { record, arn, policies, secrets })
    }

    pub fn is_root(&self) -> bool {
        self.record.name == ROOT
    }

    /// Whether requests that are signed with this access key are taken now.
    pub fn may_use(&self, access_key: &str) -> bool {
        self.record.enabled && self.record.access_keys.iter().any(|key| key.id == access_key && key.active)
    }

    /// The secret of an access key that may be used now.
    pub fn secret(&self, access_key: &str) -> Option<Zeroizing<String>> {
        let mut found = self.secrets.iter().filter(|(id, _)| id == access_key && self.may_use(id));
        found.next().map(|(_, secret)| secret.clone())
    }
}

pub fn user_arn(account: &str, name: &str) -> String {
    if name == ROOT { super::audit::root_arn(account) } else { format!("arn:aws:iam::{account}:user/{name}") }
}

/// Grants of one key.
#[derive(Default)]
pub struct Grants {
    pub by_id: BTreeMap<String, Arc<Grant>>,
    /// By the ARN or name of the grantee, so that a caller's own are found among many.
    by_grantee: HashMap<String, Vec<Arc<Grant>>>,
}

impl Grants {
    pub fn of_grantees<'a>(&'a self, grantees: &'a [&str]) -> impl Iterator<Item = &'a Arc<Grant>> {
        grantees.iter().filter_map(|grantee| self.by_grantee.get(*grantee)).flatten()
    }

    fn put(&mut self, grant: Arc<Grant>) {
        self.remove(&grant.id);
        self.by_grantee.entry(grant.terms.grantee.text().to_owned()).or_default().push(grant.clone());
        self.by_id.insert(grant.id.clone(), grant);
    }

    fn remove(&mut self, id: &str) {
        let Some(old) = self.by_id.remove(id) else { return };
        let grantee = old.terms.grantee.text();
        if let Some(list) = self.by_grantee.get_mut(grantee) {
            list.retain(|grant| grant.id != id);
            if list.is_empty() {
                self.by_grantee.remove(grantee);
            }
        }
    }
}

/// A piece of the view that takes the place of what was there.
pub enum Piece {
    Key(Arc<Key>),
    Alias(AliasRecord),
    Grant(Arc<Grant>),
    User(Arc<User>),
}

/// What leaves the view.
#[derive(Debug, Clone)]
pub enum Gone {
    Key(String),
    Alias(String),
    Grant { key: String, id: String },
}

pub struct View {
    pub keys: BTreeMap<String, Arc<Key>>,
    pub aliases: BTreeMap<String, AliasRecord>,
    aliases_of: HashMap<String, BTreeSet<String>>,
    grants: HashMap<String, Grants>,
    pub users: BTreeMap<String, Arc<User>>,
    by_access_key: HashMap<String, Arc<User>>,
}

impl View {
    /// Also the service's own record and the trail's head.
    pub fn load(records: Vec<Record>, keys: &StoreKeys) -> Result<(Self, ServiceRecord, TrailHead), StoreError> {
        let mut view = Self {
            keys: BTreeMap::new(),
            aliases: BTreeMap::new(),
            aliases_of: HashMap::new(),
            grants: HashMap::new(),
            users: BTreeMap::new(),
            by_access_key: HashMap::new(),
        };
        let service =
            records.iter().find_map(|r| if let Record::Service(service) = r { Some(service.clone()) } else { None });
        let service = service.ok_or_else(|| {
            StoreError::damaged(
                "the store says not whose it is: init or restore was interrupted; remove it and begin again",
            )
        })?;
        let mut head = TrailHead::default();
        for record in records {
            match record {
                Record::Service(_) => {}
                Record::TrailHead(found) => head = found,
                Record::Key(key) => view.put(Piece::Key(Arc::new(Key::new(key, &service, keys, None)?))),
                Record::Alias(alias) => view.put(Piece::Alias(alias)),
                Record::Grant(grant) => view.put(Piece::Grant(Arc::new(grant))),
                Record::User(user) => view.put(Piece::User(Arc::new(User::new(user, &service, keys)?))),
            }
        }
        Ok((view, service, head))
    }

    pub fn put(&mut self, piece: Piece) {
        match piece {
            Piece::Key(key) => {
                self.keys.insert(key.record.id.clone(), key);
            }
            Piece::Alias(alias) => {
                self.remove(&Gone::Alias(alias.name.clone()));
                self.aliases_of.entry(alias.target.clone()).or_default().insert(alias.name.clone());
                self.aliases.insert(alias.name.clone(), alias);
            }
            Piece::Grant(grant) => self.grants.entry(grant.key_id.clone()).or_default().put(grant),
            Piece::User(user) => {
                self.by_access_key.retain(|_, other| other.record.name != user.record.name);
                for key in &user.record.access_keys {
                    self.by_access_key.insert(key.id.clone(), user.clone());
                }
                self.users.insert(user.record.name.clone(), user);
            }
        }
    }

    pub fn remove(&mut self, gone: &Gone) {
        match gone {
            Gone::Key(id) => {
                self.keys.remove(id);
                self.grants.remove(id);
            }
            Gone::Alias(name) => {
                let Some(alias) = self.aliases.remove(name) else { return };
                if let Some(names) = self.aliases_of.get_mut(&alias.target) {
                    names.remove(name);
                    if names.is_empty() {
                        self.aliases_of.remove(&alias.target);
                    }
                }
            }
            Gone::Grant { key, id } => {
                if let Some(grants) = self.grants.get_mut(key) {
                    grants.remove(id);
                }
            }
        }
    }

    pub fn aliases_of(&self, key: &str) -> impl Iterator<Item = &str> {
        self.aliases_of.get(key).into_iter().flatten().map(String::as_str)
    }

    pub fn grants_of(&self, key: &str) -> Option<&Grants> {
        self.grants.get(key)
    }

    pub fn all_grants(&self) -> impl Iterator<Item = &Arc<Grant>> {
        self.grants.values().flat_map(|grants| grants.by_id.values())
    }

    pub fn user_of(&self, access_key: &str) -> Option<&Arc<User>> {
        self.by_access_key.get(access_key)
    }
}
