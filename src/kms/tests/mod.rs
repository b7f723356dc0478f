//! The service without its server: operations, states, restarts, trail, backup; by a clock that moves.

mod at_rest;
mod server;
mod states;
mod trail;
mod who;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::operations::{self, Asked, Caller, Origin};
use super::view::ROOT;
use super::wire::ApiError;
use super::{Plan, Service};
use crate::keys::passphrase::PassphraseSource;
use crate::keys::providers::keyfile;
use crate::keys::uri::{CmkUri, KeyfileUri};

const DAY: i64 = super::wire::time::DAY;
const ACCOUNT: &str = "123456789012";

/// A service in a directory of its own, opened again where a test wants that.
struct World {
    root: tempfile::TempDir,
    service: Option<Service>,
}

impl World {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let seal = root.path().join("seal.json");
        keyfile::create(&seal, "", None).unwrap();
        let uri = uri(&seal);
        let plan = Plan { seal: &uri, passphrase: &PassphraseSource::Nowhere, account: ACCOUNT, region: "us-east-1" };
        let (service, secret) = Service::create(&root.path().join("data"), &plan).unwrap();
        assert_eq!(secret.id.len(), 20);
        Self { root, service: Some(service) }
    }

    fn service(&self) -> &Service {
        self.service.as_ref().unwrap()
    }

    fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// As after a crash: nothing is settled before.
    fn restart(&mut self) {
        let offset = self.service().now() - super::clock::wall();
        self.service = None;
        let service = Service::open(&self.data(), &PassphraseSource::Nowhere).unwrap();
        service.clock.advance(offset);
        self.service = Some(service);
    }

    fn user(&self, name: &str) {
        self.service().administer(super::admin::Request::UserAdd { name: name.into(), service: false }, 0).unwrap();
    }

    fn service_principal(&self, name: &str) {
        self.service().administer(super::admin::Request::UserAdd { name: name.into(), service: true }, 0).unwrap();
    }

    fn user_policy(&self, name: &str, document: &Value) {
        let request = super::admin::Request::PolicyPut { name: name.into(), document: document.to_string() };
        self.service().administer(request, 0).unwrap();
    }

    fn as_user(&self, name: &str, operation: &str, input: Value) -> Result<Value, ApiError> {
        let user = self.service().view().users[name].clone();
        let caller = Caller { access_key: Ok(user.record.access_keys[0].id.clone()), user };
        let origin = Origin {
            address: Some("127.0.0.1".parse().unwrap()),
            user_agent: "test".into(),
            tls: None,
            request_id: operations::new_uuid(),
        };
        let Asked::Served(operation) = operations::find(operation) else { panic!("{operation} is not served") };
        self.service().perform(operation, input.to_string().as_bytes(), &caller, &origin)
    }

    fn root(&self, operation: &str, input: Value) -> Result<Value, ApiError> {
        self.as_user(ROOT, operation, input)
    }

    /// A symmetric key; its id.
    fn key(&self) -> String {
        id_of(&self.root("CreateKey", json!({})).unwrap())
    }

    fn encrypt(&self, key: &str) -> Value {
        self.root("Encrypt", json!({"KeyId": key, "Plaintext": "aGVsbG8="})).unwrap()["CiphertextBlob"].clone()
    }

    fn decrypt(&self, blob: &Value) -> Result<Value, ApiError> {
        self.root("Decrypt", json!({"CiphertextBlob": blob})).map(|answer| answer["Plaintext"].clone())
    }

    fn state(&self, key: &str) -> String {
        let answer = self.root("DescribeKey", json!({"KeyId": key})).unwrap();
        answer["KeyMetadata"]["KeyState"].as_str().unwrap().to_owned()
    }

    fn advance(&self, millis: i64) {
        self.service().clock.advance(millis);
    }
}

fn uri(path: &Path) -> CmkUri {
    CmkUri::from(KeyfileUri { path: path.to_owned(), key: None })
}

fn id_of(answer: &Value) -> String {
    answer["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned()
}

fn code(result: Result<Value, ApiError>) -> &'static str {
    result.map(|_| "success").unwrap_or_else(|error| error.code)
}
