//! What a mount says and shows of itself: log lines at every level, messages, command line, environment.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use super::secrecy_keys::{PASSPHRASE, Sealed, private};
use super::secrecy_search::Needles;
use super::{content, xattr_acl};
use crate::common::*;
use crate::needs;

/// The most talkative level there is; `trace` is not one.
const LOUDEST: &str = "debug";

/// Mount, create, read, rename, a wrong passphrase, a CMK that is disabled and enabled, a damaged block, a damaged header, a
/// foreign header: what is said about them names no secret.
#[test]
fn no_log_line_or_message_has_a_secret() {
    needs!(have_mount, have_root);
    let sealed = Sealed::new(true);
    let volume = &sealed.volume;
    let wrong_words = "Basilisk-7733 was never the passphrase";
    let wrong = private(volume, "wrong", wrong_words);
    let mut said = Vec::new();

    for level in ["trace", "loud"] {
        let refused = finish(volume.command(["info".as_ref(), volume.cipher.as_os_str()]).env("ENVELOPEFS_LOG", level));
        assert!(text(&refused).contains("error, warn, info, debug"), "{}", text(&refused));
    }
    let mount_with_wrong =
        ["mount", "--foreground", "--passphrase-file", wrong.to_str().unwrap()].map(std::ffi::OsStr::new);
    let mut command = volume.command(mount_with_wrong);
    command.args([&volume.cipher, &volume.mountpoint]).env("ENVELOPEFS_LOG", LOUDEST);
    let refused = finish(&mut command);
    assert_eq!(refused.status.code(), Some(4), "{}", text(&refused));
    said.push(text(&refused));

    let mount = sealed.mount_by(&["env"], LOUDEST);
    let pattern = pattern(3, 3 * PLAIN as usize);
    for name in ["whole", "block", "header", "foreign"] {
        let file = content::create(&mount.join(name));
        file.write_all_at(&pattern, 0).unwrap();
        file.sync_all().unwrap();
    }
    fs::rename(mount.join("whole"), mount.join("renamed")).unwrap();
    let inode = |name: &str| fs::metadata(mount.join(name)).unwrap().ino();
    let inodes = ["renamed", "block", "header", "foreign"].map(inode);
    let mut needles = Needles::default();
    sealed.volume_secrets(&mut needles);
    sealed.file_secrets("file", inodes[0], &mut needles);
    needles.add("wrong passphrase", wrong_words.as_bytes());
    mount.unmount();
    said.push(fs::read_to_string(volume.scratch().join("mnt.log")).unwrap());

    let damage = |ino: u64, offset: u64, bytes: &[u8]| {
        content::read_write(&volume.backing_of(ino)).write_all_at(bytes, offset).unwrap();
    };
    damage(inodes[1], DATA_START + 100, &[0x55; 64]);
    damage(inodes[2], 200, &[0x55; 64]);
    let other = fs::read(volume.backing_of(inodes[0])).unwrap();
    damage(inodes[3], 0, &other[..PAGE as usize]);
    let mount = sealed.mount_by(&["env"], LOUDEST);
    for name in ["block", "header", "foreign"] {
        assert!(fs::read(mount.join(name)).is_err(), "{name}");
    }
    assert_file(&mount.join("renamed"), &pattern);
    let log = mount.log();
    assert!(log.contains("code="), "damage is reported:\n{log}");
    mount.unmount();
    said.push(fs::read_to_string(volume.scratch().join("mnt.log")).unwrap());

    // Other commands, and what they print.
    let backing = volume.backing_of(inodes[0]);
    for path in [&volume.cipher, &volume.keyfile, &backing] {
        said.push(volume.ok(["info".as_ref(), path.as_os_str()]));
    }
    let cat = sealed.arguments(&["cat"], &[&volume.cipher, "renamed".as_ref()]);
    let output = finish(volume.command(cat).env("ENVELOPEFS_LOG", LOUDEST));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    said.push(String::from_utf8_lossy(&output.stderr).into_owned());
    let keyfile = fs::read_to_string(&volume.keyfile).unwrap();
    let broken = keyfile.replace("\"sealed\"", "\"zealed\"");
    fs::write(&volume.keyfile, broken).unwrap();
    let output = finish(
        volume
            .command(sealed.arguments(&["mount", "--foreground"], &[&volume.cipher, &volume.mountpoint]))
            .env("ENVELOPEFS_LOG", LOUDEST),
    );
    assert!(!output.status.success());
    said.push(text(&output));

    let all = said.join("\n");
    assert!(all.len() > 500 && all.contains("info: mounted"), "{all}");
    let found = needles.within(all.as_bytes());
    assert!(found.is_empty(), "in the log: {found:#?}\n{all}");
    // The search would have seen it.
    assert!(!needles.within(format!("{all} opened with {PASSPHRASE:?}").as_bytes()).is_empty());
}

#[test]
fn no_secret_in_command_line_or_environment() {
    needs!(have_mount, have_root);
    for seal in [false, true] {
        let sealed = Sealed::new(seal);
        let volume = &sealed.volume;
        volume.ok(sealed.arguments(&["mount"], &[&volume.cipher, &volume.mountpoint]));
        let file = content::create(&volume.mountpoint.join("file"));
        file.write_all_at(&pattern(3, 5000), 0).unwrap();
        file.sync_all().unwrap();
        let mut needles = Needles::default();
        sealed.volume_secrets(&mut needles);
        sealed.file_secrets("file", file.metadata().unwrap().ino(), &mut needles);
        drop(file);
        let pid = xattr_acl::get(&volume.mountpoint, "user.envelopefs.pid").unwrap();
        let pid = String::from_utf8(pid).unwrap();
        let pid = pid.trim();
        let of = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap();
        assert!(String::from_utf8_lossy(&of("cmdline")).contains("mount"));
        assert!(String::from_utf8_lossy(&of("environ")).contains("ENVELOPEFS_CONFIG_DIR"));
        for place in ["cmdline", "environ", "comm", "status", "maps", "mountinfo"] {
            let found = needles.within(&of(place));
            assert!(found.is_empty(), "in {place}: {found:#?}");
        }
        volume.umount();
    }
}
