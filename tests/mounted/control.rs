//! A mount under control: status and forget-keys over the control socket, who may use it, and what happens to open files,
//! dirty pages and the page cache when a CMK is disabled and enabled again.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::metadata::chmod;
use super::single_user::{Home, NOBODY, unmount_by_fusermount};
use crate::common::*;
use crate::needs;

const EKEYREVOKED: i32 = 128;
/// Asks as often as the option allows.
const QUICK: &str = "kms_revalidate=1s";

/// The exit code and what `status --json` prints, where it prints something.
fn status_at(volume: &Volume, mountpoint: &Path) -> (i32, Value) {
    let output = volume.run(["status".as_ref(), "--json".as_ref(), mountpoint.as_os_str()]);
    let code = output.status.code().unwrap();
    (code, serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
}
fn mode_of(volume: &Volume) -> String {
    status_at(volume, &volume.mountpoint).1["mode"].as_str().unwrap_or("none").to_owned()
}
fn forget(volume: &Volume) -> String {
    volume.ok(["forget-keys".as_ref(), volume.mountpoint.as_os_str()])
}
/// Sets the state of the only key of a keyfile, as an administrator's editor does.
fn set_state(keyfile: &Path, state: &str) {
    let mut document: Value = serde_json::from_slice(&fs::read(keyfile).unwrap()).unwrap();
    document["keys"][0]["state"] = state.into();
    let new = keyfile.with_extension("new");
    fs::write(&new, document.to_string()).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&new, keyfile).unwrap();
}
/// Disables the CMK and waits until the mount has carried that out.
fn revoke(volume: &Volume) {
    set_state(&volume.keyfile, "disabled");
    eventually("the mount is revoked", || mode_of(volume) == "revoked");
}
fn allow(volume: &Volume) {
    set_state(&volume.keyfile, "enabled");
    eventually("the mount is normal again", || mode_of(volume) == "normal");
}
fn read_errno(file: &File) -> i32 {
    let mut byte = [0];
    errno(file.read_exact_at(&mut byte, 0))
}
fn sockets(volume: &Volume) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(volume.runtime()) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}
/// A second keyfile beside the first.
fn second_key(volume: &Volume) -> PathBuf {
    let path = volume.config.join("second.json");
    volume.ok(["keygen".as_ref(), path.as_os_str()]);
    path
}

#[test]
fn a_disabled_cmk_closes_open_files_and_an_enabled_one_opens_them_again() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount_with(&[QUICK]);
    let (synced, dirty) = (pattern(1, 300_000), pattern(2, 300_000));
    let open =
        |name: &str| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(mount.join(name));
    let mut first = open("synced").unwrap();
    first.write_all(&synced).unwrap();
    first.sync_all().unwrap();
    let mut second = open("dirty").unwrap();
    second.write_all(&dirty).unwrap();
    // In the page cache, and known to be readable from it.
    assert_file(&mount.join("synced"), &synced);
    assert_file(&mount.join("dirty"), &dirty);
    fs::write(mount.join("closed"), b"closed").unwrap();

    revoke(&volume);
    for (name, file) in [("synced", &first), ("dirty", &second)] {
        eventually("an open file refuses to be read", || read_errno(file) == EKEYREVOKED);
        assert_errno(fs::read(mount.join(name)), EKEYREVOKED);
    }
    eventually("a closed file refuses to be read", || errno(fs::read(mount.join("closed"))) == EKEYREVOKED);
    let written = second.write_all_at(b"lost", 0).and_then(|()| second.sync_all());
    assert_errno(written, EKEYREVOKED);
    assert_errno(File::create(mount.join("new")), EKEYREVOKED);
    assert_errno(OpenOptions::new().append(true).open(mount.join("closed")), EKEYREVOKED);
    // Names do not hang on branch keys.
    assert!(names(&mount.path).contains(&"closed".into()));
    let log = mount.log();
    assert_eq!(log.matches("code=kms-refused").count(), 1, "{log}");
    assert_eq!(log.matches("code=keys-dropped").count(), 1, "{log}");
    assert!(!log.contains("code=keys-unsaved"), "{log}");

    allow(&volume);
    let read = |file: &File, len: usize| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0).map(|()| bytes)
    };
    assert_same(&read(&first, synced.len()).unwrap(), &synced, "synced, on the old handle");
    // What was dirty before was saved before the keys went; what was written afterwards was refused.
    let mut now = read(&second, dirty.len()).unwrap();
    if now.starts_with(b"lost") {
        now[..4].copy_from_slice(&dirty[..4]);
    }
    assert_same(&now, &dirty, "dirty, on the old handle");
    first.write_all_at(b"again", 0).unwrap();
    first.sync_all().unwrap();
    fs::write(mount.join("new"), b"new").unwrap();
    drop((first, second));
    mount.unmount();
    let mount = volume.mount();
    let mut expected = synced;
    expected[..5].copy_from_slice(b"again");
    assert_file(&mount.join("synced"), &expected);
    assert_file(&mount.join("closed"), b"closed");
    assert_file(&mount.join("new"), b"new");
}

#[test]
fn data_that_was_dirty_when_the_cmk_was_disabled_is_on_disk() {
    needs!(have_mount);
    let volume = Volume::new();
    // Nothing but the revocation commits in time.
    let mount = volume.mount_with(&[QUICK, "commit=1h"]);
    // The branch key is in memory from the first write that has reached the daemon.
    File::create(mount.join("first")).and_then(|mut f| f.write_all(b"x").and_then(|()| f.sync_all())).unwrap();
    let data = pattern(3, 1_000_000);
    let mut file = File::create(mount.join("dirty")).unwrap();
    file.write_all(&data).unwrap();
    revoke(&volume);
    eventually("the keys are dropped", || mount.log().contains("code=keys-dropped"));
    drop(file);
    // A daemon that dies now has nothing left to lose.
    mount.kill();
    set_state(&volume.keyfile, "enabled");
    let mount = volume.mount();
    assert_file(&mount.join("dirty"), &data);
}

#[test]
fn a_read_only_mount_is_revoked_too() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("file"), pattern(4, 50_000)).unwrap();
    mount.unmount();
    let mount = volume.mount_with(&["ro", QUICK]);
    let file = File::open(mount.join("file")).unwrap();
    assert_file(&mount.join("file"), &pattern(4, 50_000));
    revoke(&volume);
    eventually("an open file refuses to be read", || read_errno(&file) == EKEYREVOKED);
    allow(&volume);
    assert_eq!(read_errno(&file), 0);
    assert_file(&mount.join("file"), &pattern(4, 50_000));
}

#[test]
fn a_second_cmk_keeps_files_open_unless_the_primary_decides() {
    needs!(have_mount);
    let volume = Volume::unmade(None);
    volume.ok(["keygen".as_ref(), volume.keyfile.as_os_str()]);
    let second = format!("keyfile://{}", second_key(&volume).display());
    volume.ok(["init", "--cmk", &volume.cmk(), "--cmk", &second, volume.cipher.to_str().unwrap()]);
    for policy in ["revoke=any", "revoke=primary"] {
        let mount = volume.mount_with(&[QUICK, policy]);
        let data = pattern(5, 50_000);
        fs::write(mount.join("file"), &data).unwrap();
        let file = File::open(mount.join("file")).unwrap();
        assert_eq!(read_errno(&file), 0);
        set_state(&volume.keyfile, "disabled");
        if policy == "revoke=any" {
            eventually("the keys went on through the second", || mount.log().contains("goes on through CMK"));
            eventually("status tells of it", || mode_of(&volume) == "degraded");
            let (code, status) = status_at(&volume, &volume.mountpoint);
            assert_eq!(code, 4);
            assert_eq!(status["summary"], "1 of 2 CMKs refused, keys of 1 are dropped");
            assert_eq!(read_errno(&file), 0);
            assert_file(&mount.join("file"), &data);
            fs::write(mount.join("other"), b"works").unwrap();
        } else {
            eventually("the mount is revoked", || mode_of(&volume) == "revoked");
            eventually("an open file refuses to be read", || read_errno(&file) == EKEYREVOKED);
        }
        allow(&volume);
        assert_eq!(read_errno(&file), 0);
        drop(file);
        mount.unmount();
    }
}

#[test]
fn one_of_two_mounts_is_revoked_and_the_other_goes_on() {
    needs!(have_mount);
    let (one, two) = (Volume::new(), Volume::new());
    let (mount_one, mount_two) = (one.mount_with(&[QUICK]), two.mount_with(&[QUICK]));
    for mount in [&mount_one, &mount_two] {
        fs::write(mount.join("file"), b"content").unwrap();
    }
    revoke(&one);
    eventually("its files are closed", || errno(fs::read(mount_one.join("file"))) == EKEYREVOKED);
    assert_file(&mount_two.join("file"), b"content");
    let (_, status) = status_at(&two, &two.mountpoint);
    assert_eq!((status["mode"].as_str(), status["mountpoint"].as_str()), (Some("normal"), two.mountpoint.to_str()));
    assert_ne!(status_at(&one, &one.mountpoint).1["volume_id"], status["volume_id"]);
    allow(&one);
}

#[test]
fn a_revoked_mount_unmounts_promptly() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount_with(&[QUICK]);
    fs::write(mount.join("file"), b"content").unwrap();
    revoke(&volume);
    let start = Instant::now();
    mount.unmount();
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    volume.fails(4, ["mount".as_ref(), volume.cipher.as_os_str(), volume.mountpoint.as_os_str()]);
    set_state(&volume.keyfile, "enabled");
    assert_file(&volume.mount().join("file"), b"content");
}

#[test]
fn status_tells_how_a_mount_stands() {
    needs!(have_mount);
    let volume = Volume::new();
    let options = ["kms_revalidate=1s", "kms_deadline=3s", "kms_max_stale=1h", "revoke=primary", "commit=7"];
    let mount = volume.mount_with(&options);
    fs::write(mount.join("file"), b"content").unwrap();
    let (code, status) = status_at(&volume, &volume.mountpoint);
    assert_eq!(code, 0, "{status}");
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{value}")).to_owned();
    assert_eq!(status["version"], 1);
    assert_eq!(Path::new(&text(&status["mountpoint"])), volume.mountpoint.canonicalize().unwrap());
    assert_eq!(Path::new(&text(&status["cipherdir"])), volume.cipher.canonicalize().unwrap());
    assert_eq!(status["pid"], mount.pid());
    assert_eq!((&status["read_only"], text(&status["mode"])), (&Value::Bool(false), "normal".into()));
    assert_eq!(text(&status["volume_id"]).len(), 32);
    let device = fs::metadata(&volume.mountpoint).unwrap().dev();
    assert_eq!(text(&status["device"]), format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device)));
    let option = |name: &str| text(&status["options"][name]);
    assert_eq!((option("kms_deadline"), option("kms_revalidate")), ("3s".into(), "1s".into()));
    assert_eq!(
        (option("kms_max_stale"), option("revoke"), option("commit")),
        ("1h".into(), "primary".into(), "7s".into())
    );
    let cmk = &status["cmks"][0];
    assert_eq!((text(&cmk["provider"]), text(&cmk["state"])), ("keyfile".into(), "usable".into()));
    assert!(cmk["unwrap"]["calls"].as_u64().unwrap() > 0 && cmk["last_success"].is_string(), "{cmk}");
    assert_eq!(status["cached_keys"].as_array().unwrap().len(), 1);
    // For people: through a link and relative too.
    let link = volume.scratch().join("link");
    std::os::unix::fs::symlink(&volume.mountpoint, &link).unwrap();
    for path in [&volume.mountpoint, &link, &volume.mountpoint.join(".")] {
        let shown = volume.ok(["status".as_ref(), path.as_os_str()]);
        assert!(shown.contains("NORMAL: every CMK may be used"), "{shown}");
        assert!(shown.contains("Branch keys in memory: 1") && shown.contains("USABLE"), "{shown}");
        assert!(!shown.contains('\x1b'), "colours into a file: {shown}");
    }
    revoke(&volume);
    let output = volume.run(["status".as_ref(), volume.mountpoint.as_os_str()]);
    let shown = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(4), "{shown}");
    for part in ["REVOKED: the CMK is refused, keys are dropped", "it is disabled in", "Branch keys in memory: 0"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let (_, status) = status_at(&volume, &volume.mountpoint);
    let cmk = &status["cmks"][0];
    assert_eq!((text(&cmk["state"]), text(&cmk["dropped"])), ("refused".into(), "revoked".into()));
    assert!(text(&cmk["last_error"]["text"]).contains("disabled"));
    allow(&volume);
}

#[test]
fn what_is_no_mount_has_no_status() {
    needs!(have_mount);
    let volume = Volume::new();
    let fails = |path: &Path| volume.fails(5, ["status".as_ref(), path.as_os_str()]);
    assert!(fails(&volume.mountpoint).contains("nothing is mounted here"));
    assert!(fails(Path::new("/proc")).contains("not an envelopefs mount but proc"));
    assert!(fails(&volume.scratch().join("none")).contains("No such file"));
    let mount = volume.mount();
    fs::create_dir(mount.join("directory")).unwrap();
    let message = fails(&mount.join("directory"));
    assert!(message.contains("the mount around it is") && message.contains(volume.mountpoint.to_str().unwrap()));
    // Another runtime directory than the mount's.
    let mut command = volume.command(["status".as_ref(), volume.mountpoint.as_os_str()]);
    let output = finish(command.env("ENVELOPEFS_RUNTIME_DIR", volume.scratch()));
    assert_eq!(output.status.code(), Some(5));
    assert!(text(&output).contains("no control socket"), "{}", text(&output));
}

#[test]
fn keys_are_forgotten_and_use_brings_them_back() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount_with(&["commit=1h"]);
    let data = pattern(6, 200_000);
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(mount.join("file")).unwrap();
    file.write_all_at(&data[..9], 0).unwrap();
    file.sync_all().unwrap();
    file.write_all_at(&data, 0).unwrap();
    fs::write(mount.join("closed"), b"closed").unwrap();
    assert_eq!(status_at(&volume, &volume.mountpoint).1["cached_keys"].as_array().unwrap().len(), 1);
    let said = forget(&volume);
    assert!(said.contains("Dropped 1 branch keys and the keys of "), "{said}");
    assert!(said.contains("The volume key, which names hang on, stays until unmount."), "{said}");
    let (code, status) = status_at(&volume, &volume.mountpoint);
    assert_eq!((code, status["cached_keys"].as_array().unwrap().len()), (0, 0));
    assert_eq!(status["uncommitted"], false, "written data is saved first");
    // Everything goes on, on old handles and new ones.
    let mut back = vec![0; data.len()];
    file.read_exact_at(&mut back, 0).unwrap();
    assert_same(&back, &data, "after forget-keys");
    assert_eq!(status_at(&volume, &volume.mountpoint).1["cached_keys"].as_array().unwrap().len(), 1);
    forget(&volume);
    file.write_all_at(b"written", 5).unwrap();
    file.sync_all().unwrap();
    forget(&volume);
    assert_file(&mount.join("closed"), b"closed");
    fs::write(mount.join("new"), b"new").unwrap();
    drop(file);
    mount.unmount();
    let mount = volume.mount_with(&["ro"]);
    let mut expected = data;
    expected[5..12].copy_from_slice(b"written");
    assert_file(&mount.join("file"), &expected);
    forget(&volume);
    assert_file(&mount.join("new"), b"new");
}

#[test]
fn forgetting_while_files_are_written_loses_nothing() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount_with(&["commit=1"]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let (stop, path) = (&stop, mount.join(format!("f{thread}")));
            scope.spawn(move || {
                let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
                let mut round = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) || round < 20 {
                    let data = pattern(thread * 1000 + round, 60_000);
                    file.write_all_at(&data, 0).unwrap();
                    if round % 3 == 0 {
                        file.sync_all().unwrap();
                    }
                    let mut back = vec![0; data.len()];
                    file.read_exact_at(&mut back, 0).unwrap();
                    assert_same(&back, &data, "read back");
                    round += 1;
                }
            });
        }
        for _ in 0..10 {
            forget(&volume);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn the_socket_lives_as_long_as_the_mount() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    let found = sockets(&volume);
    let [socket] = found.as_slice() else { panic!("{found:?}") };
    let (meta, dir) = (fs::symlink_metadata(socket).unwrap(), fs::metadata(volume.runtime()).unwrap());
    assert!(meta.file_type().is_socket());
    assert_eq!((meta.mode() & 0o7777, dir.mode() & 0o7777), (0o600, 0o700));
    mount.unmount();
    assert_eq!(sockets(&volume), Vec::<PathBuf>::new());
    // A killed daemon leaves its socket; the next mount clears it away, whatever device number it gets.
    volume.mount().kill();
    assert_eq!(sockets(&volume).len(), 1);
    let mount = volume.mount();
    assert_eq!(sockets(&volume).len(), 1);
    assert_eq!(status_at(&volume, &volume.mountpoint).1["pid"], mount.pid());
}

#[test]
fn a_mount_goes_on_without_a_socket() {
    needs!(have_mount);
    let volume = Volume::new();
    let elsewhere = volume.scratch().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    chmod(&elsewhere, 0o700);
    std::os::unix::fs::symlink(&elsewhere, volume.runtime()).unwrap();
    let mount = volume.mount();
    assert!(mount.log().contains("no control socket"), "{}", mount.log());
    assert_eq!(names(&elsewhere).len(), 0, "a link is not followed");
    fs::write(mount.join("file"), b"content").unwrap();
    mount.unmount();
    // Others could put their own socket there.
    fs::remove_file(volume.runtime()).unwrap();
    fs::create_dir(volume.runtime()).unwrap();
    chmod(&volume.runtime(), 0o777);
    let mount = volume.mount();
    assert!(mount.log().contains("writable by nobody else"), "{}", mount.log());
    assert_file(&mount.join("file"), b"content");
    mount.unmount();
}

#[test]
fn another_user_is_refused() {
    needs!(have_mount, have_root);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("file"), b"content").unwrap();
    let reachable = volume.scratch().join("envelopefs");
    fs::copy(binary(), &reachable).unwrap();
    chmod(&reachable, 0o755);
    let ask = |word: &str| {
        let mut command = ALICE.command(&reachable);
        command.arg(word).arg(&volume.mountpoint).env("ENVELOPEFS_RUNTIME_DIR", volume.runtime());
        let output = finish(&mut command);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        text(&output)
    };
    for word in ["status", "forget-keys"] {
        assert!(ask(word).contains("belongs to uid 0; only that user and root may ask it"));
    }
    // Whatever the modes say, the daemon asks the kernel who it is.
    chmod(&volume.runtime(), 0o755);
    chmod(&sockets(&volume)[0], 0o666);
    for word in ["status", "forget-keys"] {
        assert!(ask(word).contains("belongs to uid 0; only that user and root may ask it"));
    }
    assert!(mount.log().contains(&format!("code=control uid {} asked", ALICE.uid)), "{}", mount.log());
    assert_eq!(status_at(&volume, &volume.mountpoint).1["cached_keys"].as_array().unwrap().len(), 1);
}

#[test]
fn an_unprivileged_mount_has_its_own_socket() {
    needs!(have_mount, have_root);
    let home = Home::new();
    let mount = home.mount();
    NOBODY.run(|| fs::write(mount.join("file"), b"content").unwrap());
    let ask = |word: &str| finish(&mut home.command(&[word.into(), home.volume.mountpoint.clone()]));
    let shown = ask("status");
    assert!(shown.status.success() && text(&shown).contains("NORMAL"), "{}", text(&shown));
    assert!(ask("forget-keys").status.success());
    assert_eq!(NOBODY.run(|| fs::read(mount.join("file")).unwrap()), b"content");
    let socket = fs::symlink_metadata(&sockets(&home.volume)[0]).unwrap();
    assert_eq!((socket.uid(), socket.mode() & 0o7777), (NOBODY.uid, 0o600));
    // Root may ask too, though it cannot look into the mount.
    assert_eq!(status_at(&home.volume, &home.volume.mountpoint).0, 0);
    unmount_by_fusermount(mount);
    assert_eq!(sockets(&home.volume).len(), 0);
}

#[test]
fn clients_that_hang_or_babble_hurt_nobody() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    let connect = || UnixStream::connect(&sockets(&volume)[0]).unwrap();
    let silent: Vec<UnixStream> = (0..8).map(|_| connect()).collect();
    for garbage in [
        &b"\n"[..],
        b"nonsense\n",
        b"{\"version\":1,\"request\":\"dance\"}\n",
        b"{\"version\":7,\"request\":\"status\"}\n",
    ] {
        let mut stream = connect();
        stream.write_all(garbage).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(
            answer.starts_with("{\"version\":1,\"error\":{\"kind\":\"other\"") && answer.ends_with("}}\n"),
            "{answer}"
        );
    }
    // More than a request may have: dropped, not stored.
    let mut stream = connect();
    let sent = (0..64).try_for_each(|_| stream.write_all(&[b'x'; 64 << 10]));
    let closed = sent.and_then(|()| stream.read_exact(&mut [0]));
    assert!(closed.is_err());
    assert_eq!(status_at(&volume, &volume.mountpoint).0, 0);
    // All seats taken: told to come back, and the seats become free by themselves.
    let more: Vec<UnixStream> = (0..40).map(|_| connect()).collect();
    let (code, _) = status_at(&volume, &volume.mountpoint);
    assert!(code == 6 || code == 0, "{code}");
    eventually("hanging clients are given up", || status_at(&volume, &volume.mountpoint).0 == 0);
    drop((silent, more));
    mount.unmount();
}

#[test]
fn a_stopped_daemon_does_not_hang_its_questioner() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    let pid = Pid::from_raw(mount.pid() as i32).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let start = Instant::now();
    let message = volume.fails(5, ["status".as_ref(), volume.mountpoint.as_os_str()]);
    let took = start.elapsed();
    kill_process(pid, Signal::CONT).unwrap();
    assert!(message.contains("does not answer within 10 seconds"), "{message}");
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert_eq!(status_at(&volume, &volume.mountpoint).0, 0);
}

/// A file system whose writers wait, until dropped.
struct Frozen<'a>(&'a Path);
impl<'a> Frozen<'a> {
    fn new(path: &'a Path) -> Self {
        tool("fsfreeze", &["--freeze".as_ref(), path.as_os_str()]);
        Self(path)
    }
}
impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        tool("fsfreeze", &["--unfreeze".as_ref(), self.0.as_os_str()]);
    }
}

#[test]
fn a_hanging_store_below_does_not_stop_status() {
    needs!(have_mount, have_root, have_loop);
    let disk = LoopFs::ext4(64, &[]);
    let volume = Volume::on(&disk.path);
    let mount = volume.mount_with(&[QUICK]);
    fs::write(mount.join("file"), b"before").unwrap();
    // By a process of its own: a child of one that has files of a hanging mount open hangs in exec, which closes them.
    let frozen = Frozen::new(&disk.path);
    let to = format!("of={}", mount.join("file").display());
    let mut writer = Command::new("dd");
    let mut writer = writer.args(["if=/dev/zero", &to, "bs=100k", "count=1", "conv=fsync"]).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let hangs = writer.try_wait().unwrap().is_none();
    let (code, status) = status_at(&volume, &volume.mountpoint);
    drop(frozen);
    assert!(writer.wait().unwrap().success());
    assert!(hangs, "the store does not hang: this test shows nothing");
    assert_eq!((code, status["mode"].as_str()), (0, Some("normal")));
    assert_file(&mount.join("file"), &[0; 100 << 10]);
}

#[test]
fn options_of_outages_are_checked_before_anything_is_mounted() {
    needs!(have_mount);
    let volume = Volume::new();
    for (option, expected) in [
        ("--kms-deadline=1h", "at most 10 minutes"),
        ("--kms-max-stale=1s", "shorter than kms_revalidate"),
        ("--revoke=none", "any or primary"),
        ("-okms_revalidate=0", "between 1 second and 1 day"),
        ("-owait_for_kms=", "wait_for_kms=DURATION"),
    ] {
        let arguments = ["mount".as_ref(), option.as_ref(), volume.cipher.as_os_str(), volume.mountpoint.as_os_str()];
        let message = volume.fails(2, arguments);
        assert!(message.contains(expected), "{option}: {message}");
    }
    // A refusal is definite: nobody waits for it to pass.
    set_state(&volume.keyfile, "disabled");
    let start = Instant::now();
    let arguments =
        ["mount".as_ref(), "--wait-for-kms".as_ref(), volume.cipher.as_os_str(), volume.mountpoint.as_os_str()];
    let message = volume.fails(4, arguments);
    assert!(message.contains("refuses: it is disabled in"), "{message}");
    assert!(start.elapsed() < Duration::from_secs(30));
}

/// What systemd is told over the socket, up to a message that has `part`.
fn told(socket: &UnixDatagram, part: &str) -> String {
    let mut all = String::new();
    let mut message = [0; 8192];
    while !all.contains(part) {
        let len = socket.recv(&mut message).unwrap_or_else(|e| panic!("{part} was never told ({e}), only:\n{all}"));
        all.push_str(std::str::from_utf8(&message[..len]).unwrap());
        all.push('\n');
    }
    all
}

/// A mount of `volume` by a server that nobody runs.
fn waiting_mount(volume: &Volume, notify: &Path, words: &[&str]) -> Command {
    // Free a moment ago, and refused by the kernel as long as nobody takes it.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let cmk = format!("hashivault://transit/app?address=http://127.0.0.1:{port}");
    let mut arguments = vec!["mount", "--cmk", &cmk, "-o", "kms_deadline=1s"];
    arguments.extend(words);
    arguments.extend([volume.cipher.to_str().unwrap(), volume.mountpoint.to_str().unwrap()]);
    let mut command = volume.command(arguments);
    command.env("NOTIFY_SOCKET", notify).env("VAULT_TOKEN", "unused").stderr(Stdio::null());
    command
}

#[test]
fn a_mount_that_waits_tells_systemd_and_can_be_ended() {
    needs!(have_mount);
    let volume = Volume::new();
    let path = volume.scratch().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();

    let mut waiting = waiting_mount(&volume, &path, &["--foreground", "--wait-for-kms"]).spawn().unwrap();
    let all = told(&socket, "STATUS=waiting for CMK");
    assert!(all.contains("cannot be reached") && all.contains("EXTEND_TIMEOUT_USEC="), "{all}");
    assert!(!all.contains("READY=1"), "{all}");
    kill_process(Pid::from_raw(waiting.id() as i32).unwrap(), Signal::TERM).unwrap();
    let ended = eventually_some(Duration::from_secs(20), || waiting.try_wait().unwrap());
    assert!(ended.is_some_and(|status| !status.success()), "{ended:?}");

    // In the background: the daemon does not outlive the command that waits for it.
    let mut starter = waiting_mount(&volume, &path, &["--wait-for-kms"]).spawn().unwrap();
    told(&socket, "STATUS=waiting for CMK");
    starter.kill().unwrap();
    starter.wait().unwrap();
    let arguments = ["mount".as_ref(), volume.cipher.as_os_str(), volume.mountpoint.as_os_str()];
    eventually("the volume is free again", || volume.run(arguments).status.success());
    volume.umount();

    // For a time.
    let start = Instant::now();
    let output = finish(&mut waiting_mount(&volume, &path, &["--wait-for-kms=2s"]));
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(text(&output).contains("(wait_for_kms)") && start.elapsed() >= Duration::from_secs(2), "{}", text(&output));
    // Without waiting: what to do.
    let output = finish(&mut waiting_mount(&volume, &path, &[]));
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(text(&output).contains("have the mount wait for it with --wait-for-kms"), "{}", text(&output));

    let mut command = volume.command([
        "mount".as_ref(),
        "--foreground".as_ref(),
        volume.cipher.as_os_str(),
        volume.mountpoint.as_os_str(),
    ]);
    command.env("NOTIFY_SOCKET", &path);
    let mount = Mount::wait_until_up(&volume, &volume.mountpoint, command);
    told(&socket, "READY=1");
    mount.unmount();
    told(&socket, "STOPPING=1");
}
