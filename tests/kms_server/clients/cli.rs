//! The aws CLI: each operation once, and what it says where the service refuses.

use data_encoding::BASE64;

use super::*;

/// The CLI against one service.
struct Cli<'a> {
    own: &'a Own,
    program: std::path::PathBuf,
    home: tempfile::TempDir,
    called: std::cell::RefCell<Vec<String>>,
}

impl Cli<'_> {
    fn run(&self, arguments: &[&str]) -> std::process::Output {
        self.called.borrow_mut().push(arguments[0].to_owned());
        let mut command = Command::new(&self.program);
        configure(&mut command, self.own, &self.own.root, self.home.path());
        command.current_dir(self.home.path()).env("AWS_MAX_ATTEMPTS", "1");
        command.args(["kms", "--output", "json"]).args(arguments).stdin(Stdio::null()).output().unwrap()
    }
    /// What it prints, as JSON; `null` where that is nothing.
    fn ok(&self, arguments: &[&str]) -> Value {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }
    /// The service refuses with this code.
    fn fails(&self, code: &str, arguments: &[&str]) {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(&format!("({code})")), "{arguments:?}: {code}: {text}");
    }
    /// A file for `fileb://`.
    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.home.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        format!("fileb://{}", path.display())
    }
    /// A file of the base64 in an answer.
    fn blob(&self, name: &str, answer: &Value) -> String {
        self.file(name, &BASE64.decode(answer.as_str().unwrap().as_bytes()).unwrap())
    }
    fn key(&self, arguments: &[&str]) -> String {
        let answer = self.ok(&[&["create-key"], arguments].concat());
        answer["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned()
    }
}

#[test]
fn the_aws_cli_drives_every_operation() {
    let Some(program) = require("the aws CLI (awscli)", find("aws")) else { return };
    let own = Own::start();
    own.user("other");
    let other = format!("arn:aws:iam::{ACCOUNT}:user/other");
    let home = tempfile::tempdir().unwrap();
    let cli = Cli { own: &own, program, home, called: Vec::new().into() };
    let plain = cli.file("plain", b"plaintext");

    let key = &cli.key(&["--description", "by the CLI", "--tags", "TagKey=a,TagValue=1"]);
    let second = &cli.key(&[]);
    assert_eq!(cli.ok(&["describe-key", "--key-id", key])["KeyMetadata"]["Description"], "by the CLI");
    assert_eq!(cli.ok(&["list-keys", "--page-size", "1"])["Keys"].as_array().unwrap().len(), 2);
    cli.ok(&["update-key-description", "--key-id", key, "--description", "d"]);
    cli.ok(&["create-alias", "--alias-name", "alias/app", "--target-key-id", second]);
    cli.ok(&["update-alias", "--alias-name", "alias/app", "--target-key-id", key]);
    assert_eq!(cli.ok(&["list-aliases", "--key-id", key])["Aliases"][0]["TargetKeyId"], key.as_str());
    cli.ok(&["tag-resource", "--key-id", key, "--tags", "TagKey=b,TagValue=2"]);
    cli.ok(&["untag-resource", "--key-id", key, "--tag-keys", "a"]);
    assert_eq!(cli.ok(&["list-resource-tags", "--key-id", key])["Tags"], json!([{"TagKey": "b", "TagValue": "2"}]));

    let context = ["--encryption-context", "app=billing"];
    let sealed = cli.ok(&[&["encrypt", "--key-id", "alias/app", "--plaintext", &plain][..], &context].concat());
    let blob = &cli.blob("blob", &sealed["CiphertextBlob"]);
    let opened = cli.ok(&[&["decrypt", "--ciphertext-blob", blob][..], &context].concat());
    assert_eq!(opened["Plaintext"], BASE64.encode(b"plaintext"));
    cli.fails("InvalidCiphertextException", &["decrypt", "--ciphertext-blob", blob]);
    let moved = cli.ok(&[
        "re-encrypt",
        "--ciphertext-blob",
        blob,
        "--source-encryption-context",
        "app=billing",
        "--destination-key-id",
        second,
    ]);
    let moved = cli.blob("moved", &moved["CiphertextBlob"]);
    assert_eq!(cli.ok(&["decrypt", "--ciphertext-blob", &moved])["Plaintext"], opened["Plaintext"]);
    let data_key = cli.ok(&["generate-data-key", "--key-id", key, "--key-spec", "AES_256"]);
    let data_blob = cli.blob("data", &data_key["CiphertextBlob"]);
    assert_eq!(cli.ok(&["decrypt", "--ciphertext-blob", &data_blob])["Plaintext"], data_key["Plaintext"]);
    cli.ok(&["generate-data-key-without-plaintext", "--key-id", key, "--number-of-bytes", "64"]);
    cli.ok(&["generate-data-key-pair", "--key-id", key, "--key-pair-spec", "ECC_NIST_P256"]);
    cli.ok(&["generate-data-key-pair-without-plaintext", "--key-id", key, "--key-pair-spec", "ECC_NIST_P384"]);
    cli.ok(&["generate-random", "--number-of-bytes", "32"]);
    cli.fails("DryRunOperationException", &["encrypt", "--key-id", key, "--plaintext", &plain, "--dry-run"]);

    let signer = &cli.key(&["--key-spec", "ECC_NIST_P256", "--key-usage", "SIGN_VERIFY"]);
    let message = ["--key-id", signer, "--message", &plain, "--signing-algorithm", "ECDSA_SHA_256"];
    let signature = cli.blob("signature", &cli.ok(&[&["sign"], &message[..]].concat())["Signature"]);
    let verified = cli.ok(&[&["verify"], &message[..], &["--signature", &signature]].concat());
    assert_eq!(verified["SignatureValid"], true);
    cli.fails("KMSInvalidSignatureException", &[&["verify"], &message[..], &["--signature", &plain]].concat());
    let mac = &cli.key(&["--key-spec", "HMAC_256", "--key-usage", "GENERATE_VERIFY_MAC"]);
    let message = ["--key-id", mac, "--message", &plain, "--mac-algorithm", "HMAC_SHA_256"];
    let tag = cli.blob("mac", &cli.ok(&[&["generate-mac"], &message[..]].concat())["Mac"]);
    assert_eq!(cli.ok(&[&["verify-mac"], &message[..], &["--mac", &tag]].concat())["MacValid"], true);
    let agreement = ["--key-spec", "ECC_NIST_P256", "--key-usage", "KEY_AGREEMENT"];
    let (ours, theirs) = (&cli.key(&agreement), &cli.key(&agreement));
    let secrets = [(ours, theirs), (theirs, ours)].map(|(mine, peer)| {
        let public = cli.blob("public", &cli.ok(&["get-public-key", "--key-id", peer])["PublicKey"]);
        let arguments = ["--key-id", mine, "--key-agreement-algorithm", "ECDH", "--public-key", &public];
        cli.ok(&[&["derive-shared-secret"], &arguments[..]].concat())["SharedSecret"].clone()
    });
    assert_eq!(secrets[0], secrets[1]);

    imports(&cli);

    cli.ok(&["enable-key-rotation", "--key-id", key, "--rotation-period-in-days", "365"]);
    assert_eq!(cli.ok(&["get-key-rotation-status", "--key-id", key])["RotationPeriodInDays"], 365);
    cli.ok(&["disable-key-rotation", "--key-id", key]);
    cli.ok(&["rotate-key-on-demand", "--key-id", key]);
    assert_eq!(cli.ok(&["list-key-rotations", "--key-id", key])["Rotations"][0]["RotationType"], "ON_DEMAND");
    let policy = cli.ok(&["get-key-policy", "--key-id", key])["Policy"].as_str().unwrap().to_owned();
    cli.ok(&["put-key-policy", "--key-id", key, "--policy", &policy]);
    assert_eq!(cli.ok(&["list-key-policies", "--key-id", key])["PolicyNames"], json!(["default"]));
    grants(&cli, key, &other);

    cli.ok(&["disable-key", "--key-id", key]);
    cli.fails("DisabledException", &["encrypt", "--key-id", key, "--plaintext", &plain]);
    cli.ok(&["enable-key", "--key-id", key]);
    cli.ok(&["get-key-last-usage", "--key-id", key]);
    cli.ok(&["delete-alias", "--alias-name", "alias/app"]);
    cli.fails("NotFoundException", &["describe-key", "--key-id", "alias/app"]);
    cli.ok(&["schedule-key-deletion", "--key-id", second, "--pending-window-in-days", "7"]);
    cli.fails("KMSInvalidStateException", &["encrypt", "--key-id", second, "--plaintext", &plain]);
    cli.ok(&["cancel-key-deletion", "--key-id", second]);

    for unsupported in [
        &["create-custom-key-store", "--custom-key-store-name", "s"][..],
        &["describe-custom-key-stores"],
        &["connect-custom-key-store", "--custom-key-store-id", "cks-1"],
        &["disconnect-custom-key-store", "--custom-key-store-id", "cks-1"],
        &["update-custom-key-store", "--custom-key-store-id", "cks-1"],
        &["delete-custom-key-store", "--custom-key-store-id", "cks-1"],
        &["replicate-key", "--key-id", key, "--replica-region", "eu-west-1"],
        &["update-primary-region", "--key-id", key, "--primary-region", "eu-west-1"],
    ] {
        cli.fails("UnsupportedOperationException", unsupported);
    }
    let mut called = cli.called.take();
    called.sort();
    called.dedup();
    assert_eq!(called.len(), 54, "{called:?}");
}

fn imports(cli: &Cli<'_>) {
    let key = &cli.key(&["--origin", "EXTERNAL"]);
    let arguments = ["--key-id", key, "--wrapping-algorithm", "RSAES_OAEP_SHA_256", "--wrapping-key-spec", "RSA_2048"];
    let got = cli.ok(&[&["get-parameters-for-import"], &arguments[..]].concat());
    let token = cli.blob("token", &got["ImportToken"]);
    cli.blob("wrapping.der", &got["PublicKey"]);
    std::fs::write(cli.home.path().join("material"), [7; 32]).unwrap();
    // As AWS's guide wraps it.
    let wrapped = Command::new("openssl")
        .current_dir(cli.home.path())
        .args(["pkeyutl", "-encrypt", "-pubin", "-keyform", "DER", "-inkey", "wrapping.der", "-in", "material"])
        .args(["-out", "wrapped", "-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256"])
        .args(["-pkeyopt", "rsa_mgf1_md:sha256"])
        .output()
        .unwrap();
    assert!(wrapped.status.success(), "{}", String::from_utf8_lossy(&wrapped.stderr));
    let wrapped = format!("fileb://{}/wrapped", cli.home.path().display());
    let arguments = ["--key-id", key, "--import-token", &token, "--encrypted-key-material", &wrapped];
    let expires = ["--expiration-model", "KEY_MATERIAL_DOES_NOT_EXPIRE"];
    cli.ok(&[&["import-key-material"], &arguments[..], &expires].concat());
    let sealed = cli.ok(&["encrypt", "--key-id", key, "--plaintext", &cli.file("plain", b"plaintext")]);
    let blob = cli.blob("imported", &sealed["CiphertextBlob"]);
    cli.ok(&["decrypt", "--ciphertext-blob", &blob]);
    cli.ok(&["delete-imported-key-material", "--key-id", key]);
    cli.fails("KMSInvalidStateException", &["decrypt", "--ciphertext-blob", &blob]);
}

fn grants(cli: &Cli<'_>, key: &str, other: &str) {
    let arguments = ["--key-id", key, "--grantee-principal", other, "--retiring-principal", other];
    let grant = |name: &str| {
        cli.ok(&[&["create-grant"], &arguments[..], &["--operations", "Decrypt", "Encrypt", "--name", name]].concat())
    };
    let (one, two) = (grant("one"), grant("two"));
    assert_eq!(cli.ok(&["list-grants", "--key-id", key])["Grants"].as_array().unwrap().len(), 2);
    let retirable = cli.ok(&["list-retirable-grants", "--retiring-principal", other]);
    assert_eq!(retirable["Grants"].as_array().unwrap().len(), 2);
    cli.ok(&["revoke-grant", "--key-id", key, "--grant-id", one["GrantId"].as_str().unwrap()]);
    cli.ok(&["retire-grant", "--grant-token", two["GrantToken"].as_str().unwrap()]);
    assert_eq!(cli.ok(&["list-grants", "--key-id", key])["Grants"], json!([]));
}
