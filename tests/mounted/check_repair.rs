//! `envelopefs check --repair`, and check where it meets resistance: mounts, read-only media, other users, hostile trees.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, mkdirat};

use super::check::{LONG, Report, SIZE, Scene, block, blocks, flip, found, nameless, page, put};
use super::content::{create, read_write};
use super::metadata::mtime;
use crate::common::*;
use crate::needs;

/// Everything of a CIPHERDIR but access times.
fn digest(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for path in walk(root).into_iter().chain([root.to_owned()]) {
        let m = fs::symlink_metadata(&path).unwrap();
        let mut facts =
            format!("{:o} {} {} {} {}.{}", m.mode(), m.len(), m.uid(), m.nlink(), m.mtime(), m.mtime_nsec())
                .into_bytes();
        if m.is_symlink() {
            facts.extend(fs::read_link(&path).unwrap().as_os_str().as_bytes());
        } else if m.is_file() && m.len() < 1 << 20 {
            facts.extend(fs::read(&path).unwrap());
        }
        all.insert(path, facts);
    }
    all
}

/// A dry run that changes nothing, then a repair; gives both reports.
fn repair(scene: &Scene, case: &Path) -> (Report, Report) {
    let before = digest(case);
    Report::of(&scene.volume, case, &[]);
    let dry = Report::of(&scene.volume, case, &["--repair"]);
    assert!(digest(case) == before, "a dry run changes nothing");
    assert!(dry.count("repaired") == 0 && dry.problems().iter().all(|p| p["repair"] != "done"));
    let done = Report::of(&scene.volume, case, &["--repair", "--yes"]);
    assert_eq!(done.found(), dry.found());
    assert_eq!(done.count("repaired"), dry.count("repairable"), "{:#}", done.value);
    assert_eq!(done.count("repairs_failed"), 0, "{:#}", done.value);
    (dry, done)
}

#[test]
fn what_crashes_leave_is_told_and_taken_away() {
    needs!(have_mount);
    let scene = Scene::new(&[]);
    let case = scene.case();
    // A daemon that is killed leaves its files growing.
    let mount = scene.volume.mount_other(&case, &scene.volume.mountpoint);
    let file = create(&mount.join("growing"));
    file.write_all_at(&pattern(5, 10_000), 0).unwrap();
    file.sync_all().unwrap();
    let ino = file.metadata().unwrap().ino();
    mount.kill();
    drop(file);
    let growing = walk(&case).into_iter().find(|p| fs::symlink_metadata(p).unwrap().ino() == ino).unwrap();
    let grown = mtime(&growing);
    // What was never synced.
    let fresh = scene.at(&case, "other");
    fs::write(&fresh, b"").unwrap();
    read_write(&fresh).set_len(block(3)).unwrap();
    // mkdir, rmdir, a change of a record, a long name, a long link target, the volume file: all half done.
    let id = fs::read_link(case.join("tree/.envelopefs.dir")).unwrap();
    fs::create_dir_all(case.join("tree/.envelopefs.tmp.one/.envelopefs.tmp.two")).unwrap();
    symlink(&id, case.join("tree/.envelopefs.tmp.one/.envelopefs.dir")).unwrap();
    symlink(&id, case.join("tree/.envelopefs.tmp.three")).unwrap();
    fs::remove_file(scene.at(&case, LONG)).unwrap();
    fs::remove_file(scene.at(&case, "long link")).unwrap();
    fs::write(case.join(".envelopefs.tmp.toml"), b"half").unwrap();
    let times = [mtime(&case.join("tree")), mtime(&fresh)];
    let (dry, _) = repair(&scene, &case);
    let want = [
        found("size-not-settled", "/growing"),
        // It has two names; which one is met first, the listing decides.
        dry.found().into_iter().find(|(code, ..)| code == "never-synced").expect("the file that was never synced"),
        nameless("temporary"),
        nameless("temporary"),
        nameless("temporary"),
        nameless("companion-orphan"),
        nameless("overflow-orphan"),
    ];
    dry.assert(0, &want);
    assert_eq!([mtime(&case.join("tree")), mtime(&fresh)], times);
    assert_eq!(mtime(&growing), grown);
    let after = Report::of(&scene.volume, &case, &[]);
    after.assert(0, &[]);
    // Nothing was deleted: two temporary objects and the half-written volume file, a companion, a link's target.
    assert_eq!(after.count("quarantined"), 5);
    let mount = scene.volume.mount_other(&case, &scene.volume.mountpoint);
    assert_file(&mount.join("growing"), &pattern(5, 10_000));
    assert_file(&mount.join("other"), b"");
    assert_file(&mount.join("victim"), &pattern(1, SIZE));
}

#[test]
fn a_bad_header_slot_is_rewritten_from_the_good_one() {
    needs!(have_mount);
    // With several pages a floor goes to the other slot: both are in use.
    let scene = Scene::new(&["--header-pages", "2"]);
    for slot in [0, 1] {
        let case = scene.case();
        let victim = scene.at(&case, "victim");
        let whole: Vec<u8> = fs::read(&victim).unwrap();
        let garbage = slot * 2 * PAGE + 500;
        flip(&victim, garbage);
        let times = mtime(&victim);
        let (dry, _) = repair(&scene, &case);
        // The older slot says an older floor; where the newer one is lost, the older one serves.
        dry.assert(0, &[found("header-slot", "/victim")]);
        let (a, b) = (page(&victim, 0), page(&victim, 2 * PAGE));
        assert_eq!(a, b);
        assert_same(&fs::read(&victim).unwrap()[4 * PAGE as usize..], &whole[4 * PAGE as usize..], "content");
        assert_eq!(mtime(&victim), times);
        Report::of(&scene.volume, &case, &[]).assert(0, &[]);
        let mount = scene.volume.mount_other(&case, &scene.volume.mountpoint);
        assert_file(&mount.join("victim"), &pattern(1, SIZE));
    }
}

#[test]
fn a_lost_directory_id_is_found_again_where_it_can_be_proven() {
    needs!(have_mount);
    let scene = Scene::new(&[]);
    let case = scene.case();
    for id in [case.join("tree"), scene.at(&case, "up"), scene.at(&case, "d"), scene.at(&case, "up/sub/deep")] {
        fs::remove_file(id.join(".envelopefs.dir")).unwrap();
    }
    let times = mtime(&scene.at(&case, "up"));
    // `d` has nobody who would know its id, `deep` has nothing that would need one.
    let lost = ["/", "/d", "/up", "/up/sub/deep"].map(|path| found("dir-id", path));
    let (dry, done) = repair(&scene, &case);
    dry.assert(7, &lost);
    done.assert(7, &lost);
    assert_eq!(done.count("repaired"), 3);
    assert_eq!(mtime(&scene.at(&case, "up")), times);
    let after = Report::of(&scene.volume, &case, &[]);
    after.assert(7, &[found("dir-id", "/d")]);
    let mount = scene.volume.mount_other(&case, &scene.volume.mountpoint);
    assert_file(&mount.join("victim"), &pattern(1, SIZE));
    assert_file(&mount.join("up/file"), b"up");
    assert_file(&mount.join("up/sub/file"), b"sub");
    assert_errno(fs::read(mount.join("d/inside")), libc::EIO);
    drop(mount);
    // Nothing of `d` was touched: with the link from a backup it is whole.
    let original = scene.at(&scene.volume.cipher, "d").join(".envelopefs.dir");
    symlink(fs::read_link(original).unwrap(), scene.at(&case, "d").join(".envelopefs.dir")).unwrap();
    Report::of(&scene.volume, &case, &[]).assert(0, &[]);
}

/// What stood in the place of a record that is written anew is kept.
#[test]
fn a_bad_directory_record_is_replaced_and_kept() {
    needs!(have_mount);
    let scene = Scene::new(&[]);
    let case = scene.case();
    let id = |name: &str| scene.at(&case, name).join(".envelopefs.dir");
    // The subdirectory `deep` knows the id.
    fs::remove_file(id("up/sub")).unwrap();
    fs::write(id("up/sub"), b"no link").unwrap();
    let (dry, done) = repair(&scene, &case);
    dry.assert(7, &[found("dir-id", "/up/sub")]);
    assert_eq!(done.count("repaired"), 1, "{:#}", done.value);
    let kept: Vec<PathBuf> =
        walk(&case.join("quarantine")).into_iter().filter(|p| !p.ends_with("manifest.jsonl")).collect();
    assert_eq!(kept.iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>(), [b"no link"]);
    Report::of(&scene.volume, &case, &[]).assert(0, &[]);
    let mount = scene.volume.mount_other(&case, &scene.volume.mountpoint);
    assert_file(&mount.join("up/sub/file"), b"sub");
}

/// A file that was never synced, and has blocks, is not emptied: its header may be in a backup.
#[test]
fn blocks_without_a_header_are_not_deleted() {
    needs!(have_mount);
    let scene = Scene::new(&[]);
    let case = scene.case();
    let other = scene.at(&case, "up/file");
    read_write(&other).set_len(block(1)).unwrap();
    let header = page(&other, 0);
    put(&other, 0, &[0; PAGE as usize]);
    let (dry, done) = repair(&scene, &case);
    dry.assert(0, &[found("never-synced", "/up/file")]);
    assert_eq!(done.count("repaired"), 0);
    put(&other, 0, &header);
    let (_, done) = repair(&scene, &case);
    done.assert(0, &[found("size-not-settled", "/up/file")]);
    let mount = scene.volume.mount_other(&case, &scene.volume.mountpoint);
    assert_file(&mount.join("up/file"), b"up");
}

/// A quarantine that somebody prepared is written to only where it is one.
#[test]
fn a_prepared_quarantine_is_no_way_out() {
    needs!(have_mount, have_root);
    let scene = Scene::new(&[]);
    let outside = scene.volume.scratch().join("outside");
    fs::write(&outside, b"not ours").unwrap();
    let prepare: [&dyn Fn(&Path); 5] = [
        &|q| symlink(scene.volume.scratch(), q).unwrap(),
        &|q| fs::write(q, b"a file").unwrap(),
        &|q| {
            fs::create_dir(q).unwrap();
            symlink(&outside, q.join("manifest.jsonl")).unwrap();
        },
        &|q| {
            fs::create_dir(q).unwrap();
            fs::hard_link(&outside, q.join("manifest.jsonl")).unwrap();
        },
        &|q| {
            fs::create_dir(q).unwrap();
            let mode = Mode::RUSR | Mode::WUSR;
            let zero = rustix::fs::makedev(1, 5);
            rustix::fs::mknodat(
                rustix::fs::CWD,
                q.join("manifest.jsonl"),
                rustix::fs::FileType::CharacterDevice,
                mode,
                zero,
            )
            .unwrap();
        },
    ];
    for (n, prepare) in prepare.iter().enumerate() {
        let case = scene.case();
        flip(&scene.at(&case, "victim"), 100);
        prepare(&case.join("quarantine"));
        let report = Report::of(&scene.volume, &case, &["--repair", "--yes"]);
        assert_eq!((report.exit, report.count("repairs_failed")), (7, 1), "{n}: {:#}", report.value);
        assert!(scene.at(&case, "victim").exists() && fs::read(&outside).unwrap() == b"not ours", "{n}");
    }
}

#[test]
fn what_does_not_authenticate_goes_to_quarantine_and_nothing_else() {
    needs!(have_mount);
    let scene = Scene::new(&[]);
    let case = scene.case();
    let (victim, link) = (scene.at(&case, "victim"), scene.at(&case, "link"));
    flip(&victim, 100);
    let broken = fs::read(&victim).unwrap();
    fs::remove_file(&link).unwrap();
    symlink("/etc/passwd", &link).unwrap();
    // The object that this one led to is no orphan while that is not known.
    let long = scene.at(&case, "long link");
    let target = fs::read_link(&long).unwrap().into_os_string().into_string().unwrap();
    fs::remove_file(&long).unwrap();
    symlink(format!("{}{}", &target[..10], target[10..].to_ascii_lowercase()), &long).unwrap();
    fs::write(case.join("tree/stray.txt"), b"stray").unwrap();
    // A file with a lost block stays: its other blocks are good.
    flip(&scene.at(&case, "other"), block(7) + 100);
    let (_, done) = repair(&scene, &case);
    let other = done.found().into_iter().find(|(code, ..)| code == "block-auth").unwrap();
    assert_eq!(other.2, Some((7, 7)));
    let links = ["/link", "/long link"].map(|path| found("symlink-auth", path));
    let [one, two] = links;
    let gone = [found("header", "/victim"), one, two, nameless("name-auth"), other.clone()];
    done.assert(7, &gone);
    let after = Report::of(&scene.volume, &case, &[]);
    // The attribute of the broken file went with it.
    after.assert(7, &[other, nameless("overflow-orphan")]);
    assert_eq!(after.count("quarantined"), 4);
    let manifest = fs::read_to_string(case.join("quarantine/manifest.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = manifest.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    let line = lines.iter().find(|line| line["code"] == "header").unwrap();
    assert_eq!(case.join(line["from"].as_str().unwrap()), victim);
    assert_same(&fs::read(case.join("quarantine").join(line["object"].as_str().unwrap())).unwrap(), &broken, "moved");
    assert!(!manifest.contains("victim"), "no plaintext name");
    let modes = ["quarantine", "quarantine/manifest.jsonl"].map(|n| fs::metadata(case.join(n)).unwrap().mode() & 0o777);
    assert_eq!(modes, [0o700, 0o600]);
    let mount = scene.volume.mount_other(&case, &scene.volume.mountpoint);
    assert!(!mount.join("victim").exists());
    assert_errno(fs::read(mount.join("other")), libc::EIO);
}

/// Where keys are wanting nothing is known, and nothing is moved.
#[test]
fn a_missing_key_is_not_damage() {
    needs!(have_mount);
    let volume = Volume::new();
    let tenant = volume.config.join("tenant.json");
    volume.ok(["keygen".as_ref(), tenant.as_os_str()]);
    let mount = volume.mount();
    fs::create_dir(mount.join("team")).unwrap();
    let uri = format!("keyfile://{}", tenant.display());
    volume.ok(["cmk".as_ref(), "set".as_ref(), mount.join("team").as_os_str(), "--cmk".as_ref(), uri.as_ref()]);
    fs::write(mount.join("team/file"), b"of the team").unwrap();
    fs::create_dir(mount.join("team/sub")).unwrap();
    fs::write(mount.join("file"), b"of the volume").unwrap();
    mount.unmount();
    let report = Report::of(&volume, &volume.cipher, &[]);
    report.assert(0, &[]);
    let cmks = report.value["counts"]["cmks"].as_array().unwrap();
    assert!(cmks.len() == 2 && cmks.iter().all(|cmk| cmk["files"] == 1 && cmk["missing"] == 0), "{:#}", report.value);
    fs::rename(&tenant, volume.config.join("away")).unwrap();
    let before = digest(&volume.cipher);
    for options in [&[][..], &["--repair", "--yes"]] {
        let report = Report::of(&volume, &volume.cipher, options);
        report.assert(4, &[found("key", "/team/file")]);
    }
    assert!(digest(&volume.cipher) == before);
    fs::rename(volume.config.join("away"), &tenant).unwrap();
    // The subdirectory knows the directory's id; which CMKs it had would be a guess.
    let dir = volume.cipher.join("tree");
    let team = walk(&dir).into_iter().find(|p| p.is_dir()).unwrap();
    fs::remove_file(team.join(".envelopefs.dir")).unwrap();
    let report = Report::of(&volume, &volume.cipher, &["--repair", "--yes"]);
    report.assert(7, &[found("dir-id", "/team")]);
    assert_eq!(report.count("repaired"), 0, "{:#}", report.value);
}

#[test]
fn mounted_volumes_are_refused_and_readers_share() {
    needs!(have_mount);
    let scene = Scene::new(&[]);
    let cipher = &scene.volume.cipher;
    let mount = scene.volume.mount();
    let message = scene.volume.fails(6, ["check".as_ref(), cipher.as_os_str()]);
    assert!(message.contains("umount"), "{message}");
    scene.volume.fails(6, ["check".as_ref(), "--no-keys".as_ref(), cipher.as_os_str()]);
    mount.unmount();
    // A read-only mount changes nothing, and a check neither; a repair needs it alone.
    let mount = scene.volume.mount_with(&["ro"]);
    Report::of(&scene.volume, cipher, &["--repair"]).assert(0, &[]);
    scene.volume.fails(6, ["check".as_ref(), "--repair".as_ref(), "--yes".as_ref(), cipher.as_os_str()]);
    mount.unmount();
    scene.volume.fails(3, ["check".as_ref(), scene.volume.scratch().as_os_str()]);
}

#[test]
fn read_only_media_are_checked_and_repairs_fail_loudly() {
    needs!(have_mount, have_root, have_loop);
    let disk = LoopFs::ext4(64, &[]);
    let volume = Volume::on(&disk.path);
    let mount = volume.mount();
    fs::write(mount.join("file"), pattern(1, 50_000)).unwrap();
    fs::write(mount.join("broken"), pattern(2, 50_000)).unwrap();
    let ino = fs::metadata(mount.join("broken")).unwrap().ino();
    mount.unmount();
    flip(&volume.backing_of(ino), 100);
    tool("mount", &["-o".as_ref(), "remount,ro".as_ref(), disk.path.as_os_str()]);
    let want = [found("header", "/broken")];
    Report::of(&volume, &volume.cipher, &[]).assert(7, &want);
    let report = Report::of(&volume, &volume.cipher, &["--repair", "--yes"]);
    report.assert(7, &want);
    assert_eq!(report.count("repairs_failed"), 1);
}

/// Permission errors are findings of their own: no damage, but not clean either.
#[test]
fn another_user_is_told_what_was_not_read() {
    needs!(have_mount, have_root);
    let scene = Scene::new(&[]);
    let reachable = scene.volume.scratch().join("envelopefs");
    fs::copy(binary(), &reachable).unwrap();
    chmod(&reachable, 0o755);
    let case = scene.case();
    chmod(&case, 0o755);
    chmod(&case.join("overflow"), 0o755);
    chmod(&case.join("envelopefs.toml"), 0o644);
    chmod(&scene.at(&case, "victim"), 0o600);
    chmod(&scene.at(&case, "d"), 0o700);
    // His own configuration, with a copy of the key.
    let config = scene.volume.scratch().join("alice");
    tool("cp", &["-a".as_ref(), scene.volume.config.as_os_str(), config.as_os_str()]);
    tool("chown", &["-R".as_ref(), "54321:54321".as_ref(), config.as_os_str()]);
    let mut command = ALICE.command(&reachable);
    command.args(["check", "--json", "--cmk"]).arg(format!("keyfile://{}", config.join("cmk.json").display()));
    command.arg(&case).env("ENVELOPEFS_CONFIG_DIR", &config).env("ENVELOPEFS_RUNTIME_DIR", &config);
    let output = finish(&mut command);
    let value: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)));
    let report = Report { exit: output.status.code().unwrap(), value };
    let mut paths: Vec<String> =
        report.found().into_iter().filter(|(code, ..)| code == "unreadable").filter_map(|(_, path, _)| path).collect();
    paths.sort();
    paths.dedup();
    assert!(paths.contains(&"/victim".into()) && paths.contains(&"/d".into()), "{:#}", report.value);
    assert_eq!(report.exit, 1, "{:#}", report.value);
    assert_eq!(report.count("damage"), 0);
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Far more levels than descriptors, and none of them named by us.
#[test]
fn deep_trees_need_neither_stack_nor_descriptors() {
    needs!(have_mount);
    const DEPTH: u64 = 1500;
    let volume = Volume::with_options(&["--plaintext-names"]);
    let mut at: rustix::fd::OwnedFd = File::open(volume.cipher.join("tree")).unwrap().into();
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    for level in 0..DEPTH {
        // A second one beside it, so that the way back up is used.
        mkdirat(&at, "b", Mode::RWXU).unwrap();
        mkdirat(&at, if level % 2 == 0 { "a" } else { "c" }, Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, if level % 2 == 0 { "a" } else { "c" }, flags, Mode::empty()).unwrap();
    }
    let mut command = std::process::Command::new("prlimit");
    command.arg("--nofile=420:420").arg(binary()).args(["check", "--json"]).arg(&volume.cipher);
    command.env("ENVELOPEFS_CONFIG_DIR", &volume.config).stdin(std::process::Stdio::null());
    let output = finish(&mut command);
    let value: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)));
    let report = Report { exit: output.status.code().unwrap(), value };
    assert_eq!(report.exit, 7);
    assert_eq!(report.count("directories"), 2 * DEPTH + 1);
    assert!(report.problems().iter().all(|p| p["code"] == "dir-id"), "{}", report.problems()[0]);
    assert_eq!(report.count("damage"), 2 * DEPTH);
    tool("rm", &["-rf".as_ref(), volume.cipher.as_os_str()]);
}

/// Loops and other file systems are not entered.
#[test]
fn mounts_inside_the_tree_are_not_followed() {
    needs!(have_mount, have_root);
    let scene = Scene::new(&[]);
    let case = scene.case();
    let place = scene.at(&case, "up/sub/deep");
    let bind = |from: &Path| tool("mount", &["--bind".as_ref(), from.as_os_str(), place.as_os_str()]);
    let unbind = || tool("umount", &[place.as_os_str()]);
    bind(&case.join("tree"));
    let report = Report::of(&scene.volume, &case, &[]);
    unbind();
    report.assert(7, &[found("other-filesystem", "/up/sub/deep")]);
    tool("mount", &["-t".as_ref(), "tmpfs".as_ref(), "none".as_ref(), place.as_os_str()]);
    let report = Report::of(&scene.volume, &case, &[]);
    report.assert(7, &[found("other-filesystem", "/up/sub/deep")]);
    unbind();
    Report::of(&scene.volume, &case, &[]).assert(0, &[]);
    // The link to a long target is hidden below a mount: its target is no orphan.
    let long = scene.at(&case, "long link");
    let mount = scene.volume.mount_other(&case, &scene.volume.mountpoint);
    fs::rename(mount.join("long link"), mount.join("up/sub/deep/long link")).unwrap();
    mount.unmount();
    assert!(!long.exists());
    tool("mount", &["-t".as_ref(), "tmpfs".as_ref(), "none".as_ref(), place.as_os_str()]);
    let report = Report::of(&scene.volume, &case, &["--repair", "--yes"]);
    unbind();
    report.assert(7, &[found("other-filesystem", "/up/sub/deep")]);
    Report::of(&scene.volume, &case, &[]).assert(0, &[]);
}

/// Many bad blocks are ranges, and more than can be told are counted.
#[test]
fn many_bad_blocks_stay_few_lines() {
    needs!(have_mount);
    const MANY: u64 = 12_000;
    let volume = Volume::new();
    let mount = volume.mount();
    let file = create(&mount.join("large"));
    for index in 0..MANY / 100 {
        file.write_all_at(&pattern(index, 100 * PLAIN as usize), index * 100 * PLAIN).unwrap();
    }
    drop(file);
    let ino = fs::metadata(mount.join("large")).unwrap().ino();
    mount.unmount();
    let large = volume.backing_of(ino);
    put(&large, block(3000), &vec![9; 6000 * PAGE as usize]);
    let report = Report::of(&volume, &volume.cipher, &["--jobs", "3"]);
    report.assert(7, &[blocks("block-auth", "/large", 3000, 8999)]);
    assert_eq!(report.count("blocks"), MANY - 6000);
    for index in (0..MANY).step_by(2) {
        flip(&large, block(index) + 99);
    }
    let report = Report::of(&volume, &volume.cipher, &[]);
    assert!(report.problems().len() <= 256 && report.exit == 7);
    assert!(report.problems().iter().any(|p| p["detail"].as_str().unwrap().contains("more bad blocks")));
}
