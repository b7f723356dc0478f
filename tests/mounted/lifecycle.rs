//! The command itself: making, mounting and unmounting volumes, who may mount what, exit codes, daemon hygiene.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};

use super::metadata::mode;
use super::xattr_acl;
use crate::common::*;
use crate::needs;

fn is_mounted(path: &Path) -> bool {
    fs::read_to_string("/proc/self/mounts").unwrap().lines().any(|line| line.split(' ').nth(1) == path.to_str())
}
/// The pid that the mount itself names.
fn pid_of(mountpoint: &Path) -> u32 {
    String::from_utf8(xattr_acl::get(mountpoint, "user.envelopefs.pid").unwrap()).unwrap().trim().parse().unwrap()
}
fn alive(pid: u32) -> bool {
    // A zombie has ended: in a container nobody may ever reap it.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}
/// Mounts as a daemon, the default of the command.
fn daemonise(volume: &Volume) -> u32 {
    volume.ok(["mount".as_ref(), volume.cipher.as_os_str(), volume.mountpoint.as_os_str()]);
    let pid = pid_of(&volume.mountpoint);
    assert!(alive(pid));
    pid
}
/// Every content file in the backing directory has its size in its length: no commit is outstanding.
fn assert_all_committed(volume: &Volume) {
    for path in walk(&volume.cipher.join("tree")) {
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_file() && metadata.len() > DATA_START {
            let tail = (metadata.len() - DATA_START) % PAGE;
            assert!((1..=PLAIN).contains(&tail), "{} is still growing: {} bytes", path.display(), metadata.len());
        }
    }
}

#[test]
fn mount_returns_when_the_mount_answers() {
    needs!(have_mount);
    let volume = Volume::new();
    let pid = daemonise(&volume);
    assert!(is_mounted(&volume.mountpoint));
    assert_ne!(pid, std::process::id());
    fs::write(volume.mountpoint.join("file"), b"content").unwrap();
    assert_file(&volume.mountpoint.join("file"), b"content");
    volume.umount();
    assert!(!is_mounted(&volume.mountpoint) && !alive(pid), "umount waits for the daemon");
    assert_all_committed(&volume);
}

#[test]
fn a_daemon_holds_none_of_its_callers_pipes() {
    needs!(have_mount);
    let volume = Volume::new();
    let mut command = volume.command(["mount".as_ref(), volume.cipher.as_os_str(), volume.mountpoint.as_os_str()]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // These end only when the last holder of the pipe closes it.
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
    let pid = pid_of(&volume.mountpoint);
    let directory = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    assert_eq!(directory, Path::new("/"), "a daemon pins no directory");
    volume.umount();
}

#[test]
fn one_command_from_nothing() {
    needs!(have_mount);
    let volume = Volume::unmade(None);
    let (cipher, fresh) = (volume.cipher.clone(), volume.scratch().join("new mountpoint"));
    volume.ok(["mount".as_ref(), "--create".as_ref(), cipher.as_os_str(), fresh.as_os_str()]);
    fs::write(fresh.join("file"), b"content").unwrap();
    volume.umount_at(&fresh);
    assert_eq!(mode(&volume.cipher), 0o700);
    assert_eq!(mode(&volume.config.join("cmk.json")), 0o600);
    // The second time it mounts what is there.
    volume.ok(["mount".as_ref(), "--create".as_ref(), cipher.as_os_str(), fresh.as_os_str()]);
    assert_file(&fresh.join("file"), b"content");
    volume.umount_at(&fresh);
}

#[test]
fn bare_umount_then_mount_again_at_once() {
    needs!(have_mount, have_root);
    let volume = Volume::new();
    for round in 0..5 {
        daemonise(&volume);
        for index in 0..30 {
            fs::write(volume.mountpoint.join(format!("f{index}")), pattern(round + index, 10_000)).unwrap();
        }
        // umount(2) does not wait for the daemon: the next mount does.
        eventually("the mount is free", || rustix::mount::unmount(&volume.mountpoint, UnmountFlags::empty()).is_ok());
    }
    daemonise(&volume);
    for index in 0..30 {
        assert_file(&volume.mountpoint.join(format!("f{index}")), &pattern(4 + index, 10_000));
    }
    volume.umount();
}

#[test]
fn every_way_to_unmount_is_clean() {
    needs!(have_mount);
    let volume = Volume::new();
    let ways: [&[&str]; 3] = [&["umount"], &["fusermount3", "-u"], &["SIGTERM"]];
    for (round, way) in ways.iter().enumerate() {
        if way[0] == "umount" && !is_root() {
            continue;
        }
        let pid = daemonise(&volume);
        // Not synced, in every state that a file can be in.
        let at = |name: &str| volume.mountpoint.join(format!("{name}{round}"));
        fs::write(at("small"), b"x").unwrap();
        fs::write(at("large"), pattern(1, 1_000_000)).unwrap();
        let file = File::create(at("sparse")).unwrap();
        file.set_len(1 << 30).unwrap();
        OpenOptions::new().append(true).open(at("large")).unwrap().write_all(b"tail").unwrap();
        drop(file);
        if way[0] == "SIGTERM" {
            kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::TERM).unwrap();
        } else {
            let mut arguments: Vec<&OsStr> = way[1..].iter().map(OsStr::new).collect();
            arguments.push(volume.mountpoint.as_os_str());
            eventually("the mount is free", || {
                Command::new(way[0]).args(&arguments).output().unwrap().status.success()
            });
        }
        eventually("the daemon ends", || !alive(pid));
        assert!(!is_mounted(&volume.mountpoint), "{way:?}");
        assert_all_committed(&volume);
    }
}

#[test]
fn a_busy_mount_is_not_unmounted() {
    needs!(have_mount, have_root);
    let volume = Volume::new();
    daemonise(&volume);
    let mut file = File::create(volume.mountpoint.join("file")).unwrap();
    volume.fails(6, ["umount".as_ref(), volume.mountpoint.as_os_str()]);
    file.write_all(b"still works").unwrap();
    drop(file);
    assert_file(&volume.mountpoint.join("file"), b"still works");
    volume.umount();
    volume.fails(5, ["umount".as_ref(), volume.mountpoint.as_os_str()]);
}

#[test]
fn a_second_writer_is_refused_and_told_who_has_it() {
    needs!(have_mount);
    let volume = Volume::new();
    let pid = daemonise(&volume);
    let second = volume.scratch().join("second");
    fs::create_dir(&second).unwrap();
    for options in ["rw", "ro"] {
        let arguments =
            ["mount".as_ref(), "-o".as_ref(), options.as_ref(), volume.cipher.as_os_str(), second.as_os_str()];
        let message = volume.fails(6, arguments);
        assert!(message.contains(&pid.to_string()), "{message}");
    }
    volume.umount();
}

#[test]
fn read_only_mounts_share_a_volume() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("file"), b"content").unwrap();
    mount.unmount();
    let second = volume.scratch().join("second");
    fs::create_dir(&second).unwrap();
    let one = volume.mount_with(&["ro"]);
    let two = volume.mount_at(&second, &["ro"]);
    for mount in [&one, &two] {
        assert_file(&mount.join("file"), b"content");
        let refused = [
            errno(File::create(mount.join("new"))),
            errno(OpenOptions::new().write(true).open(mount.join("file"))),
            errno(fs::remove_file(mount.join("file"))),
            errno(fs::create_dir(mount.join("d"))),
            errno(fs::rename(mount.join("file"), mount.join("other"))),
            errno(fs::set_permissions(mount.join("file"), fs::Permissions::from_mode(0o600))),
            errno(xattr_acl::set(&mount.join("file"), "user.x", b"")),
            errno(std::os::unix::fs::symlink("x", mount.join("l"))),
        ];
        assert_eq!(refused, [libc::EROFS; 8]);
    }
    let third = volume.scratch().join("third");
    fs::create_dir(&third).unwrap();
    volume.fails(6, ["mount".as_ref(), volume.cipher.as_os_str(), third.as_os_str()]);
}

/// A read-only mount leaves the backing directory as it was, to the byte and the time.
#[test]
fn a_read_only_mount_changes_nothing() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("file"), pattern(1, 50_000)).unwrap();
    // Left growing, as after a crash.
    OpenOptions::new().append(true).open(mount.join("file")).unwrap().write_all(b"x").unwrap();
    File::open(mount.join("file")).unwrap().sync_all().unwrap();
    mount.kill();
    let snapshot = || {
        let state = |path: &Path| {
            let m = fs::symlink_metadata(path).unwrap();
            (path.to_owned(), m.len(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec())
        };
        walk(&volume.cipher).iter().map(|path| state(path)).collect::<Vec<_>>()
    };
    let before = snapshot();
    let mount = volume.mount_with(&["ro"]);
    assert_eq!(fs::metadata(mount.join("file")).unwrap().len(), 50_001);
    assert_eq!(fs::read(mount.join("file")).unwrap().len(), 50_001);
    mount.unmount();
    assert_eq!(snapshot(), before);
}

#[test]
fn exit_codes() {
    needs!(have_mount);
    let volume = Volume::new();
    let none = volume.scratch().join("none");
    let (cipher, mountpoint) = (volume.cipher.as_os_str(), volume.mountpoint.as_os_str());
    let mount = OsStr::new("mount");
    volume.fails(2, ["mount"]);
    volume.fails(2, ["no-such-command"]);
    volume.fails(2, [mount, "-o".as_ref(), "no_such_option".as_ref(), cipher, mountpoint]);
    volume.fails(3, [mount, none.as_os_str(), mountpoint]);
    volume.fails(3, ["info".as_ref(), none.as_os_str()]);
    volume.fails(5, [mount, cipher, none.join("deeper").as_os_str()]);
    let file = volume.scratch().join("file");
    fs::write(&file, b"").unwrap();
    volume.fails(5, [mount, cipher, file.as_os_str()]);
    // A volume is not made over one that exists, nor over other files.
    let init = |target: &Path| {
        [OsStr::new("init"), "--cmk".as_ref(), volume.cmk().as_ref(), target.as_os_str()].map(OsStr::to_owned)
    };
    volume.fails(3, init(&volume.cipher));
    let foreign = volume.scratch().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("precious"), b"data").unwrap();
    assert!(!volume.run(init(&foreign)).status.success());
    assert_eq!(names(&foreign), ["precious"]);
    // A keyfile is never overwritten.
    let before = fs::read(&volume.keyfile).unwrap();
    assert!(!volume.run(["keygen".as_ref(), volume.keyfile.as_os_str()]).status.success());
    assert_eq!(fs::read(&volume.keyfile).unwrap(), before);
    assert!(volume.ok(["--help"]).contains("mount"));
    assert!(volume.ok(["--version"]).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn missing_and_refused_keys_are_exit_code_4() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = ["mount".as_ref(), volume.cipher.as_os_str(), volume.mountpoint.as_os_str()];
    let away = volume.keyfile.with_extension("away");
    fs::rename(&volume.keyfile, &away).unwrap();
    volume.fails(4, mount);
    // Another key in its place opens nothing.
    volume.ok(["keygen".as_ref(), volume.keyfile.as_os_str()]);
    volume.fails(4, mount);
    fs::rename(&away, &volume.keyfile).unwrap();
    // A keyfile that others may read is refused.
    fs::set_permissions(&volume.keyfile, fs::Permissions::from_mode(0o644)).unwrap();
    let message = volume.fails(4, mount);
    assert!(message.contains("cmk.json"), "{message}");
    fs::set_permissions(&volume.keyfile, fs::Permissions::from_mode(0o600)).unwrap();
    volume.ok(mount);
    volume.umount();
}

#[test]
fn passphrases_come_from_files() {
    needs!(have_mount);
    let volume = Volume::unmade(None);
    let (right, wrong) = (volume.scratch().join("right"), volume.scratch().join("wrong"));
    fs::write(&right, b"correct horse battery staple\n").unwrap();
    fs::write(&wrong, b"incorrect\n").unwrap();
    for path in [&right, &wrong] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    volume.ok(["keygen".as_ref(), volume.keyfile.as_os_str(), "--passphrase-file".as_ref(), right.as_os_str()]);
    let with = |verb: &str, passphrase: &Path| {
        let mut all = vec![verb.into(), "--passphrase-file".into(), passphrase.as_os_str().to_owned()];
        if verb == "init" {
            all.extend(["--cmk".into(), volume.cmk().into()]);
        }
        all.push(volume.cipher.clone().into());
        if verb == "mount" {
            all.push(volume.mountpoint.clone().into());
        }
        all
    };
    volume.ok(with("init", &right));
    volume.fails(4, with("mount", &wrong));
    // Without a terminal and without a file there is no passphrase, and nothing waits for one.
    volume.fails(4, ["mount".as_ref(), volume.cipher.as_os_str(), volume.mountpoint.as_os_str()]);
    volume.ok(with("mount", &right));
    let pid = pid_of(&volume.mountpoint);
    for file in ["cmdline", "environ"] {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap();
        assert!(!bytes.windows(5).any(|window| window == b"horse"), "passphrase in {file}");
    }
    volume.umount();
}

#[test]
fn a_host_without_a_record_is_told_the_command() {
    needs!(have_mount);
    let volume = Volume::new();
    let records = volume.config.join("known_volumes.toml");
    let saved = fs::read(&records).expect("init records the volume");
    fs::remove_file(&records).unwrap();
    let mount = OsStr::new("mount");
    let (cipher, mountpoint) = (volume.cipher.as_os_str(), volume.mountpoint.as_os_str());
    let message = volume.fails(4, [mount, cipher, mountpoint]);
    assert!(message.contains("--cmk") && message.contains("keyfile://"), "{message}");
    let cmk = volume.cmk();
    volume.ok([mount, "--cmk".as_ref(), cmk.as_ref(), cipher, mountpoint]);
    volume.umount();
    let _ = fs::remove_file(&records);
    volume.ok([mount, "-o".as_ref(), "trust_first_use".as_ref(), cipher, mountpoint]);
    volume.umount();
    // A record that says another commitment: this is not the volume that was made here.
    let text = String::from_utf8(saved).unwrap();
    let line = text.lines().find(|line| line.starts_with("commitment")).expect("a commitment is recorded");
    let flipped = line.replace(['0', '1'], "7");
    fs::write(&records, text.replace(line, &flipped)).unwrap();
    volume.fails(3, [mount, cipher, mountpoint]);
    fs::write(&records, text).unwrap();
    volume.ok([mount, cipher, mountpoint]);
    volume.umount();
}

#[test]
fn info_tells_volumes_and_files() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("file"), pattern(1, 10_000)).unwrap();
    let ino = fs::metadata(mount.join("file")).unwrap().ino();
    mount.unmount();
    let backing = volume.backing_of(ino);
    for target in [&volume.cipher, &backing] {
        assert!(!volume.ok(["info".as_ref(), target.as_os_str()]).trim().is_empty());
        let json = volume.ok(["info".as_ref(), target.as_os_str(), "--json".as_ref()]);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json}"));
        let id = if target == &backing { &value["headers"]["a"]["volume_id"] } else { &value["volume_id"] };
        assert_eq!(id.as_str().map(str::len), Some(32), "{json}");
    }
    // It needs no key and shows none.
    fs::rename(&volume.keyfile, volume.keyfile.with_extension("away")).unwrap();
    volume.ok(["info".as_ref(), volume.cipher.as_os_str()]);
    volume.ok(["info".as_ref(), backing.as_os_str()]);
}

#[test]
fn the_daemon_shows_no_secret_and_dumps_no_core() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    let (pid, keyfile) = (mount.pid(), fs::read_to_string(&volume.keyfile).unwrap());
    let secrets: Vec<&str> = keyfile.split('"').filter(|word| word.len() >= 40 && !word.contains(' ')).collect();
    assert!(!secrets.is_empty(), "the keyfile holds a key");
    for file in ["cmdline", "environ", "status", "maps"] {
        let shown = String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{file}")).unwrap()).into_owned();
        assert!(!secrets.iter().any(|secret| shown.contains(secret)), "a key in /proc/PID/{file}");
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    assert!(!secrets.iter().any(|secret| mount.log().contains(secret)));
    mount.unmount();
}

#[test]
fn a_crashed_mount_can_be_replaced() {
    needs!(have_mount);
    let volume = Volume::new();
    let pid = daemonise(&volume);
    fs::write(volume.mountpoint.join("file"), b"content").unwrap();
    File::open(volume.mountpoint.join("file")).unwrap().sync_all().unwrap();
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
    eventually("the daemon is gone", || !alive(pid));
    assert!(fs::metadata(&volume.mountpoint).is_err(), "a dead mount answers ENOTCONN");
    volume.umount();
    daemonise(&volume);
    assert_file(&volume.mountpoint.join("file"), b"content");
    volume.umount();
}

/// mount(2) options that the kernel enforces for us.
#[test]
fn kernel_mount_options() {
    needs!(have_mount, have_root);
    let volume = Volume::new();
    let mount = volume.mount_with(&["noexec", "nosuid", "nodev"]);
    let line = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = line.lines().find(|line| line.contains(volume.mountpoint.to_str().unwrap())).unwrap().to_owned();
    for word in ["noexec", "nosuid", "nodev", "default_permissions"] {
        assert!(line.contains(word), "{word} not in {line}");
    }
    assert!(line.contains("envelopefs"), "the type names us: {line}");
    fs::copy("/bin/true", mount.join("true")).unwrap();
    fs::set_permissions(mount.join("true"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_errno(Command::new(mount.join("true")).status(), libc::EACCES);
}

/// The interval is a promise: without any sync, what was written is committed after it.
#[test]
fn the_background_commit_runs_by_itself() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount_with(&["commit=1"]);
    fs::write(mount.join("file"), pattern(1, 10_000)).unwrap();
    let ino = fs::metadata(mount.join("file")).unwrap().ino();
    rustix::fs::sync();
    let backing = volume.backing_of(ino);
    eventually("the size stands in the backing length", || {
        let len = fs::metadata(&backing).unwrap().len();
        len > DATA_START && len % PAGE == 10_000 % PLAIN
    });
    std::thread::sleep(Duration::from_millis(10));
    mount.unmount();
    assert_all_committed(&volume);
}

#[test]
fn either_of_two_keys_opens_the_volume() {
    needs!(have_mount);
    let volume = Volume::unmade(None);
    let second = volume.scratch().join("second.json");
    for keyfile in [&volume.keyfile, &second] {
        volume.ok(["keygen".as_ref(), keyfile.as_os_str()]);
    }
    let (one, two) = (volume.cmk(), format!("keyfile://{}", second.display()));
    let cipher = volume.cipher.as_os_str();
    volume.ok(["init".as_ref(), "--cmk".as_ref(), one.as_ref(), "--cmk".as_ref(), two.as_ref(), cipher]);
    let mount = volume.mount();
    fs::write(mount.join("file"), b"content").unwrap();
    mount.unmount();
    for (lost, left) in [(&volume.keyfile, &two), (&second, &one)] {
        let away = lost.with_extension("away");
        fs::rename(lost, &away).unwrap();
        let got = volume.ok(["cat".as_ref(), "--cmk".as_ref(), left.as_ref(), cipher, "file".as_ref()]);
        assert_eq!(got, "content");
        fs::rename(&away, lost).unwrap();
    }
}

/// mount(8) and umount(8) call `/sbin/mount.fuse.envelopefs` and its twin with arguments of their own.
#[test]
fn helpers_of_mount_and_umount() {
    needs!(have_mount);
    let volume = Volume::new();
    let helper = |name: &str| {
        let path = volume.scratch().join(name);
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_envelopefs"), &path).unwrap();
        let mut command = Command::new(path);
        command.env("ENVELOPEFS_CONFIG_DIR", &volume.config).stdin(Stdio::null());
        command
    };
    let mut mount = helper("mount.fuse.envelopefs");
    mount.args([volume.cipher.as_os_str(), volume.mountpoint.as_os_str(), "-o".as_ref(), "rw,noatime,nofail".as_ref()]);
    let output = finish(&mut mount);
    assert!(output.status.success(), "{}", text(&output));
    fs::write(volume.mountpoint.join("file"), b"content").unwrap();
    let mut unmount = helper("umount.fuse.envelopefs");
    unmount.arg(&volume.mountpoint);
    eventually("the helper unmounts", || finish(&mut unmount).status.success());
    assert!(!is_mounted(&volume.mountpoint));
}

#[test]
fn a_directory_open_to_others_is_warned_about() {
    needs!(have_mount);
    let volume = Volume::new();
    fs::set_permissions(&volume.cipher, fs::Permissions::from_mode(0o755)).unwrap();
    let mount = volume.mount();
    assert!(mount.log().contains("warn"), "{}", mount.log());
    fs::write(mount.join("file"), b"content").unwrap();
    mount.unmount();
}

#[test]
fn sync_and_dirsync_options_work() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount_with(&["sync", "dirsync"]);
    fs::create_dir(mount.join("d")).unwrap();
    fs::write(mount.join("d/file"), pattern(1, 50_000)).unwrap();
    fs::rename(mount.join("d"), mount.join("e")).unwrap();
    mount.kill();
    let mount = volume.mount();
    assert_file(&mount.join("e/file"), &pattern(1, 50_000));
}

#[test]
fn of_several_mounts_at_once_one_wins() {
    needs!(have_mount);
    let volume = Volume::new();
    let points: Vec<_> = (0..4).map(|index| volume.scratch().join(format!("m{index}"))).collect();
    for point in &points {
        fs::create_dir(point).unwrap();
    }
    let codes: Vec<_> = std::thread::scope(|scope| {
        let start =
            |point| volume.run(["mount".as_ref(), volume.cipher.as_os_str(), Path::as_os_str(point)]).status.code();
        let threads: Vec<_> = points.iter().map(|point| scope.spawn(move || start(point))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
    });
    let mut sorted = codes.clone();
    sorted.sort();
    assert_eq!(sorted, [0, 6, 6, 6]);
    let winner = &points[codes.iter().position(|&code| code == 0).unwrap()];
    assert!(is_mounted(winner));
    volume.umount_at(winner);
}

#[test]
fn mountpoints_and_volumes_do_not_overlap() {
    needs!(have_mount);
    let volume = Volume::new();
    let inside = volume.cipher.join("tree");
    volume.fails(5, ["mount".as_ref(), volume.cipher.as_os_str(), inside.as_os_str()]);
    volume.fails(5, ["mount".as_ref(), volume.cipher.as_os_str(), volume.cipher.as_os_str()]);
    volume.fails(5, ["mount".as_ref(), volume.cipher.as_os_str(), volume.scratch().as_os_str()]);
}

#[test]
fn a_read_only_backing_store() {
    needs!(have_mount, have_root, have_loop);
    let disk = LoopFs::ext4(32, &[]);
    let volume = Volume::on(&disk.path);
    let mount = volume.mount();
    fs::write(mount.join("file"), b"content").unwrap();
    mount.unmount();
    let remount = |how: &str| tool("mount", &["-o".as_ref(), OsStr::new(how), disk.path.as_os_str()]);
    remount("remount,ro");
    let output = volume.run(["mount".as_ref(), volume.cipher.as_os_str(), volume.mountpoint.as_os_str()]);
    // Refused, or mounted so that every write says EROFS; never a mount that loses what is written.
    if output.status.success() {
        assert_errno(File::create(volume.mountpoint.join("new")), libc::EROFS);
        volume.umount();
    }
    let mount = volume.mount_with(&["ro"]);
    assert_file(&mount.join("file"), b"content");
    mount.unmount();
    remount("remount,rw");
    volume.mount().unmount();
}

/// Format promise 3 assumes 4 KiB blocks below: where they are smaller, the operator is told.
#[test]
fn a_backing_store_with_small_blocks_is_warned_about() {
    needs!(have_mount, have_root, have_loop);
    let disk = LoopFs::ext4(32, &["-b", "1024"]);
    let volume = Volume::on(&disk.path);
    let mount = volume.mount();
    assert!(mount.log().contains("warn") && mount.log().contains("1024"), "{}", mount.log());
    fs::write(mount.join("file"), pattern(1, 50_000)).unwrap();
    mount.unmount();
    let mount = volume.mount();
    assert_file(&mount.join("file"), &pattern(1, 50_000));
    mount.unmount();
}

#[test]
fn options_of_init_keep_every_promise_of_content() {
    needs!(have_mount);
    let all: [&[&str]; 3] = [&["--key-mode", "per-file"], &["--header-pages", "3"], &["--branch-max-files", "3"]];
    for options in all {
        let volume = Volume::with_options(options);
        let mount = volume.mount();
        for index in 0..12_u64 {
            fs::write(mount.join(format!("f{index}")), pattern(index, 1 + index as usize * 1500)).unwrap();
        }
        OpenOptions::new().append(true).open(mount.join("f3")).unwrap().write_all(b"more").unwrap();
        fs::OpenOptions::new().write(true).open(mount.join("f4")).unwrap().set_len(100).unwrap();
        xattr_acl::set(&mount.join("f5"), "user.tag", b"value").unwrap();
        mount.kill();
        let mount = volume.mount();
        let check = |mount: &Mount| {
            for index in 0..12_u64 {
                let mut model = pattern(index, 1 + index as usize * 1500);
                match index {
                    3 => model.extend(b"more"),
                    4 => model.truncate(100),
                    _ => {}
                }
                assert_file(&mount.join(format!("f{index}")), &model);
            }
        };
        check(&mount);
        mount.unmount();
        let mount = volume.mount();
        check(&mount);
        assert_eq!(xattr_acl::get(&mount.join("f5"), "user.tag").unwrap(), b"value");
        mount.unmount();
        let output = volume.run(["cat".as_ref(), volume.cipher.as_os_str(), "f7".as_ref()]);
        assert_same(&output.stdout, &pattern(7, 10_501), "cat");
    }
}
