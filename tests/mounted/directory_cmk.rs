//! CMKs of directories: tenants on one mount whose files hang on different keys.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::common::*;
use crate::needs;

const KEY: i32 = 126;
const REVOKED: i32 = 128;
const IO: i32 = 5;

/// A volume with readable names below, and keyfiles for tenants.
struct Tenants {
    volume: Volume,
}

impl Tenants {
    fn new() -> Self {
        let tenants = Self { volume: Volume::with_options(&["--plaintext-names"]) };
        for name in ["a", "b"] {
            tenants.volume.ok(["keygen".as_ref(), tenants.keyfile(name).as_os_str()]);
        }
        tenants
    }
    fn keyfile(&self, name: &str) -> PathBuf {
        self.volume.config.join(format!("{name}.json"))
    }
    fn uri(&self, name: &str) -> String {
        format!("keyfile://{}", self.keyfile(name).display())
    }
    fn set(&self, dir: &Path, names: &[&str]) -> String {
        let mut arguments = vec!["cmk".to_owned(), "set".into(), dir.display().to_string()];
        for name in names {
            arguments.extend(["--cmk".into(), self.uri(name)]);
        }
        self.volume.ok(arguments)
    }
    fn show(&self, dir: &Path) -> serde_json::Value {
        let text = self.volume.ok(["cmk".as_ref(), "show".as_ref(), "--json".as_ref(), dir.as_os_str()]);
        serde_json::from_str(&text).unwrap()
    }
    /// The directory in the mount's root, with a CMK of its own and one file.
    fn tenant(&self, mount: &Mount, name: &str) -> PathBuf {
        let dir = mount.join(name);
        fs::create_dir(&dir).unwrap();
        self.set(&dir, &[name]);
        fs::write(dir.join("file"), name).unwrap();
        dir
    }
    fn id(&self, name: &str) -> String {
        let document: serde_json::Value = serde_json::from_slice(&fs::read(self.keyfile(name)).unwrap()).unwrap();
        document["keys"][0]["id"].as_str().unwrap().to_owned()
    }
    /// Replaces the keyfile by one whose key is in this state.
    fn put(&self, name: &str, state: &str) {
        let text = fs::read_to_string(self.keyfile(name)).unwrap();
        let mut document: serde_json::Value = serde_json::from_str(&text).unwrap();
        document["keys"][0]["state"] = state.into();
        let temp = self.volume.config.join("new.json");
        fs::copy(self.keyfile(name), &temp).unwrap();
        fs::write(&temp, document.to_string()).unwrap();
        fs::rename(temp, self.keyfile(name)).unwrap();
    }
    fn below(&self, path: &str) -> PathBuf {
        self.volume.cipher.join("tree").join(path)
    }
    fn record(&self, dir: &str) -> PathBuf {
        self.below(dir).join(".envelopefs.dir")
    }
    /// The keys that a file's header names: what `info` tells without any key.
    fn hangs_on(&self, file: &str, name: &str) -> bool {
        let info = self.volume.ok(["info".as_ref(), self.below(file).as_os_str()]);
        info.contains(&self.id(name))
    }
    fn plant(&self, dir: &str, record: &Path) {
        fs::remove_file(self.record(dir)).unwrap();
        symlink(record, self.record(dir)).unwrap();
    }
}

#[track_caller]
fn errno<T>(result: io::Result<T>, expected: i32) {
    match result {
        Ok(_) => panic!("it worked"),
        Err(e) => assert_eq!(e.raw_os_error(), Some(expected), "{e}"),
    }
}

/// A write may be taken by the kernel first.
fn write_through(path: &Path) -> io::Result<()> {
    let file = fs::File::create(path)?;
    io::Write::write_all(&mut &file, b"new")?;
    file.sync_all()
}

#[test]
fn tenants_hang_on_keys_of_their_own() {
    needs!(have_mount);
    let tenants = Tenants::new();
    let mount = tenants.volume.mount();
    let (a, b) = (tenants.tenant(&mount, "a"), tenants.tenant(&mount, "b"));
    fs::create_dir_all(a.join("deep/er")).unwrap();
    fs::write(a.join("deep/er/file"), b"inherited").unwrap();
    fs::write(mount.join("shared"), b"of nobody").unwrap();
    fs::rename(a.join("file"), b.join("of a")).unwrap();
    fs::rename(a.join("deep"), b.join("deep")).unwrap();
    fs::write(b.join("deep/er/later"), b"inherited").unwrap();
    mount.unmount();

    for (file, key) in [("b/of a", "a"), ("b/file", "b"), ("b/deep/er/file", "a"), ("b/deep/er/later", "a")] {
        for name in ["a", "b"] {
            assert_eq!(tenants.hangs_on(file, name), name == key, "{file} on {name}");
        }
    }
    assert!(!tenants.hangs_on("shared", "a") && !tenants.hangs_on("shared", "b"));

    // A remount knows what this host trusts, and goes on under the same branches.
    let volume_file = fs::read_to_string(tenants.volume.cipher.join("envelopefs.toml")).unwrap();
    assert_eq!(volume_file.lines().filter(|line| line.starts_with("  { id = ")).count(), 2, "{volume_file}");
    let mount = tenants.volume.mount();
    assert!(!mount.log().contains("directory-cmk"), "{}", mount.log());
    assert_eq!(fs::read(mount.join("b/of a")).unwrap(), b"a");
    fs::write(mount.join("b/more"), b"b").unwrap();
    mount.unmount();
    assert!(tenants.hangs_on("b/more", "b"));
    assert_eq!(fs::read_to_string(tenants.volume.cipher.join("envelopefs.toml")).unwrap(), volume_file);

    let export = tenants.volume.scratch().join("export");
    tenants.volume.ok(["export".as_ref(), tenants.volume.cipher.as_os_str(), export.as_os_str()]);
    assert_eq!(fs::read(export.join("b/of a")).unwrap(), b"a");
    let cat = tenants.volume.ok(["cat".as_ref(), tenants.volume.cipher.as_os_str(), "b/deep/er/later".as_ref()]);
    assert_eq!(cat, "inherited");
}

#[test]
fn cmks_are_shown_changed_and_taken_back() {
    needs!(have_mount);
    let tenants = Tenants::new();
    let mount = tenants.volume.mount();
    let dir = mount.join("d");
    fs::create_dir(&dir).unwrap();
    let shown = tenants.show(&dir);
    assert_eq!((&shown["own"], shown["cmks"].as_array().unwrap().len()), (&false.into(), 1));
    fs::write(dir.join("before"), b"x").unwrap();
    let mtime = fs::metadata(&dir).unwrap().mtime_nsec();

    let said = tenants.set(&dir, &["b", "a"]);
    assert!(said.contains("of its own") && said.contains("keep their keys"), "{said}");
    let shown = tenants.show(&dir);
    assert_eq!(shown["own"], true);
    for (at, name) in ["b", "a"].into_iter().enumerate() {
        assert_eq!(shown["cmks"][at]["key"], tenants.id(name));
        assert_eq!(shown["cmks"][at]["state"], "usable");
        assert_eq!(shown["cmks"][at]["uri"], format!("{}?key={}", tenants.uri(name), tenants.id(name)));
    }
    assert_eq!(fs::metadata(&dir).unwrap().mtime_nsec(), mtime);
    fs::write(dir.join("during"), b"x").unwrap();
    let human = tenants.volume.ok(["cmk".as_ref(), "unset".as_ref(), dir.as_os_str()]);
    assert!(human.contains("it has none of its own"), "{human}");
    fs::write(dir.join("after"), b"x").unwrap();
    // The mount's root, through a path that is not the mountpoint's own.
    tenants.set(&mount.path, &["a"]);
    fs::write(mount.join("top"), b"x").unwrap();
    mount.unmount();
    let keys = |file: &str| ["a", "b"].map(|name| tenants.hangs_on(file, name));
    assert_eq!(keys("d/before"), [false, false]);
    assert_eq!(keys("d/during"), [true, true]);
    assert_eq!(keys("d/after"), [false, false]);
    assert_eq!(keys("top"), [true, false]);
}

#[test]
fn a_disabled_cmk_of_one_tenant_leaves_the_other_alone() {
    needs!(have_mount);
    let tenants = Tenants::new();
    let mount = tenants.volume.mount_with(&["kms_revalidate=1s"]);
    let (a, b) = (tenants.tenant(&mount, "a"), tenants.tenant(&mount, "b"));
    assert_eq!(fs::read(b.join("file")).unwrap(), b"b");
    tenants.put("b", "disabled");
    let revoked = || fs::read(b.join("file")).is_err_and(|e| e.raw_os_error() == Some(REVOKED));
    eventually("the disabled key is revoked", revoked);
    assert_eq!(fs::read(a.join("file")).unwrap(), b"a");
    fs::write(a.join("new"), b"a").unwrap();
    assert!(write_through(&b.join("new")).is_err());
    let shown = tenants.show(&b);
    assert_eq!(shown["cmks"][0]["state"], "refused", "{shown}");
    tenants.put("b", "enabled");
    let healed = || fs::read(b.join("file")).is_ok_and(|content| content == b"b");
    eventually("the enabled key works again", healed);
    assert_eq!(fs::read(a.join("new")).unwrap(), b"a");
}

#[test]
fn without_one_tenant_s_keyfile_the_mount_starts_and_serves_the_other() {
    needs!(have_mount);
    let tenants = Tenants::new();
    let mount = tenants.volume.mount();
    tenants.tenant(&mount, "a");
    tenants.tenant(&mount, "b");
    fs::rename(mount.join("a/file"), mount.join("b/of a")).unwrap();
    mount.unmount();

    let away = tenants.volume.scratch().join("away.json");
    fs::rename(tenants.keyfile("b"), &away).unwrap();
    let mount = tenants.volume.mount();
    assert!(mount.log().contains("code=directory-cmk going on without CMK keyfile:"), "{}", mount.log());
    assert_eq!(fs::read(mount.join("b/of a")).unwrap(), b"a");
    errno(fs::read(mount.join("b/file")), KEY);
    assert!(write_through(&mount.join("b/new")).is_err());
    fs::write(mount.join("a/new"), b"a").unwrap();
    assert!(!tenants.below("b/new").exists());
    fs::remove_file(mount.join("b/of a")).unwrap();

    // It comes back, and nobody has to mount again.
    fs::rename(&away, tenants.keyfile("b")).unwrap();
    eventually("the keyfile that came back is used", || fs::read(mount.join("b/file")).is_ok_and(|text| text == b"b"));
    write_through(&mount.join("b/new")).unwrap();
    mount.unmount();
    assert!(tenants.hangs_on("a/new", "a") && tenants.hangs_on("b/new", "b"));
}

#[test]
fn a_cmk_that_this_host_does_not_trust_is_not_used_until_it_is() {
    needs!(have_mount);
    let tenants = Tenants::new();
    let mount = tenants.volume.mount();
    tenants.tenant(&mount, "b");
    mount.unmount();
    let records = tenants.volume.config.join("known_volumes.toml");
    let recorded = fs::read_to_string(&records).unwrap();
    let without: String =
        recorded.lines().filter(|l| !l.starts_with("directory_cmks")).map(|l| format!("{l}\n")).collect();
    assert_ne!(recorded, without);
    fs::write(&records, without).unwrap();

    let mount = tenants.volume.mount();
    let log = mount.log();
    let command = log.split("type: ").nth(1).and_then(|rest| rest.lines().next()).unwrap_or_else(|| panic!("{log}"));
    errno(fs::read(mount.join("b/file")), KEY);
    errno(fs::write(mount.join("b/new"), b"x"), KEY);
    assert_eq!(fs::read_dir(mount.join("b")).unwrap().count(), 1);
    assert!(mount.log().contains(&format!("it names keyfile:{}", tenants.id("b"))), "{}", mount.log());
    assert_eq!(tenants.show(&mount.join("b"))["cmks"][0]["state"], "not given");
    mount.unmount();

    // The very command of the log.
    let command = command.replacen("envelopefs", &binary().display().to_string(), 1);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &command]).env("ENVELOPEFS_CONFIG_DIR", &tenants.volume.config);
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{command}: {}", text(&output));
    let mount = tenants.volume.mount();
    assert_eq!(fs::read(mount.join("b/file")).unwrap(), b"b");
    fs::write(mount.join("b/new"), b"x").unwrap();
    mount.unmount();

    // A host without a record: both are named by the error, and both work named.
    fs::remove_file(&records).unwrap();
    let mountpoint = tenants.volume.mountpoint.as_os_str();
    let error = tenants.volume.fails(4, ["mount".as_ref(), tenants.volume.cipher.as_os_str(), mountpoint]);
    assert!(error.contains(&format!("--cmk '{}", tenants.uri("b"))), "{error}");
    let (own, b) = (format!("cmk={}", tenants.volume.cmk()), format!("cmk={}", tenants.uri("b")));
    let mount = tenants.volume.mount_with(&[&own, &b]);
    assert_eq!(fs::read(mount.join("b/file")).unwrap(), b"b");
    // Naming it does not make it one of the volume's own.
    fs::write(mount.join("shared"), b"x").unwrap();
    mount.unmount();
    assert!(!tenants.hangs_on("shared", "b"));
    let mount = tenants.volume.mount();
    assert_eq!(fs::read(mount.join("b/file")).unwrap(), b"b", "recorded");
}

#[test]
fn a_tampered_record_is_an_error_and_one_from_elsewhere_opens_nothing() {
    needs!(have_mount);
    let tenants = Tenants::new();
    let mount = tenants.volume.mount();
    tenants.tenant(&mount, "a");
    tenants.tenant(&mount, "b");
    fs::create_dir(mount.join("plain")).unwrap();
    mount.unmount();
    let good = fs::read_link(tenants.record("a")).unwrap();
    let text = good.to_str().unwrap().to_owned();
    let plain = fs::read_link(tenants.record("plain")).unwrap();
    let plain = plain.to_str().unwrap();
    let swapped = |at: usize| {
        let mut bytes = text.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        String::from_utf8(bytes).unwrap()
    };
    // A changed key, the list cut off, the end of a record without a list.
    for bad in [swapped(50), text[..59].to_owned(), format!("{}{}", &text[..43], &plain[43..])] {
        tenants.plant("a", Path::new(&bad));
        let mount = tenants.volume.mount();
        errno(fs::write(mount.join("a/new"), b"x"), IO);
        errno(fs::read(mount.join("a/file")), IO);
        assert_eq!(fs::read(mount.join("b/file")).unwrap(), b"b");
        let dir = mount.join("a");
        let error = tenants.volume.fails(1, ["cmk".as_ref(), "unset".as_ref(), dir.as_os_str()]);
        assert!(error.contains("damaged"), "{error}");
        assert!(mount.log().contains("code=dir-id"), "{}", mount.log());
        mount.unmount();
    }
    tenants.plant("a", &good);
    let mount = tenants.volume.mount();
    assert_eq!(fs::read(mount.join("a/file")).unwrap(), b"a");
}

#[test]
fn content_is_recovered_without_the_volume_file() {
    needs!(have_mount);
    let tenants = Tenants::new();
    let mount = tenants.volume.mount();
    tenants.tenant(&mount, "b");
    mount.unmount();
    fs::remove_file(tenants.volume.cipher.join("envelopefs.toml")).unwrap();
    let export = tenants.volume.scratch().join("export");
    let (cipher, uri) = (tenants.volume.cipher.as_os_str(), tenants.uri("b"));
    tenants.volume.ok(["export".as_ref(), "--cmk".as_ref(), uri.as_ref(), cipher, export.as_os_str()]);
    assert_eq!(fs::read(export.join("b/file")).unwrap(), b"b");
}

#[test]
fn what_cannot_be_given_is_refused_and_changes_nothing() {
    needs!(have_mount);
    let tenants = Tenants::new();
    let volume = &tenants.volume;
    let mount = volume.mount();
    let dir = mount.join("d");
    fs::create_dir(&dir).unwrap();
    fs::write(mount.join("file"), b"x").unwrap();
    let before = fs::read(volume.cipher.join("envelopefs.toml")).unwrap();
    let set = |code: i32, dir: &Path, uris: &[&str], expected: &str| {
        let mut arguments = vec!["cmk".to_owned(), "set".into(), dir.display().to_string()];
        arguments.extend(uris.iter().flat_map(|uri| ["--cmk".to_owned(), (*uri).to_owned()]));
        let error = volume.fails(code, arguments);
        assert!(error.contains(expected), "{error}");
    };
    let (a, b) = (tenants.uri("a"), tenants.uri("b"));
    set(5, volume.scratch(), &[&a], "not on an envelopefs mount");
    set(5, &mount.join("file"), &[&a], "Not a directory");
    set(5, &mount.join("none"), &[&a], "No such file");
    set(4, &dir, &["keyfile:///none.json"], "none.json");
    set(4, &dir, &["nonsense:x"], "unknown scheme");
    set(4, &dir, &[&a, &a], "twice");
    set(4, &dir, &[&format!("{a}?optional=true")], "never optional");
    tenants.put("b", "disabled");
    set(4, &dir, &[&a, &b], "disabled");
    tenants.put("b", "enabled");

    let (sealed, secret) = (volume.config.join("sealed.json"), volume.config.join("secret"));
    fs::write(&secret, "correct horse\n").unwrap();
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    volume.ok(["keygen".as_ref(), "--passphrase-file".as_ref(), secret.as_os_str(), sealed.as_os_str()]);
    let uri = format!("keyfile://{}", sealed.display());
    set(4, &dir, &[&uri], "nobody can be asked for it here: give --passphrase-file");
    assert_eq!(tenants.show(&dir)["own"], false);
    assert_eq!(fs::read(volume.cipher.join("envelopefs.toml")).unwrap(), before);
    let words = ["cmk".as_ref(), "set".as_ref(), "--passphrase-file".as_ref(), secret.as_os_str(), "--cmk".as_ref()];
    volume.ok(words.into_iter().chain([uri.as_ref(), dir.as_os_str()]));
    fs::write(dir.join("sealed"), b"x").unwrap();
    mount.unmount();

    let read_only = volume.mount_with(&["ro"]);
    set(1, &read_only.join("d"), &[&a], "read-only");
    assert_eq!(tenants.show(&read_only.join("d"))["own"], true);
    read_only.unmount();
}

#[test]
fn only_root_and_the_mount_s_owner_may_change_cmks() {
    needs!(have_mount, have_root);
    let tenants = Tenants::new();
    let mount = tenants.volume.mount();
    let dir = mount.join("d");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&mount.path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(&dir, Some(ALICE.uid), Some(ALICE.gid)).unwrap();
    // A copy of the command that other users can reach.
    let command = tenants.volume.scratch().join("envelopefs");
    fs::copy(binary(), &command).unwrap();
    let uri = tenants.uri("a");
    for words in [&["unset"][..], &["set", "--cmk", &uri], &["show"]] {
        let mut run = ALICE.command(&command);
        run.arg("cmk").args(words).arg(&dir).env("ENVELOPEFS_RUNTIME_DIR", tenants.volume.runtime());
        let output = run.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains("only that user and root may ask it"), "{}", text(&output));
    }
    assert_eq!(tenants.show(&dir)["own"], false);
}
