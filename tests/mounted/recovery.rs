//! Without a mount: cat and export, a lost volume file, damage on the way.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use super::content::read_write;
use super::metadata::{chmod, set_times};
use super::xattr_acl;
use crate::common::*;
use crate::needs;

/// A tree with every kind of thing that a backup must bring back.
fn fill(root: &Path) {
    fs::create_dir_all(root.join("directory/sub")).unwrap();
    for (index, size) in [0, 1, 4047, 4048, 4049, 100_000].into_iter().enumerate() {
        let path = root.join(format!("directory/file{index}"));
        fs::write(&path, pattern(index as u64, size)).unwrap();
        chmod(&path, 0o600 + index as u32);
    }
    fs::write(root.join("n".repeat(255)), b"long name").unwrap();
    fs::write(root.join("directory/sub/\u{e9}\n strange"), b"strange name").unwrap();
    symlink("file1", root.join("directory/link")).unwrap();
    // XFS keeps 1023 bytes: an export to it could not hold more.
    symlink("t".repeat(1000), root.join("directory/long link")).unwrap();
    let sparse = super::content::create(&root.join("sparse"));
    sparse.set_len(50 << 20).unwrap();
    sparse.write_all_at(b"island", 20 << 20).unwrap();
    xattr_acl::set(&root.join("directory/file1"), "user.tag", b"value").unwrap();
    xattr_acl::set(&root.join("directory"), "user.tag", b"directory value").unwrap();
    chmod(&root.join("directory/sub"), 0o750);
    for (index, path) in walk(root).iter().rev().enumerate() {
        set_times(path, (1000, 0), (1_000_000 + index as i64, 123_456_789));
    }
}
fn compare(one: &Path, two: &Path) {
    let relative =
        |root: &Path| walk(root).iter().map(|p| p.strip_prefix(root).unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(relative(one), relative(two));
    for name in relative(one) {
        let (a, b) = (one.join(&name), two.join(&name));
        let (x, y) = (fs::symlink_metadata(&a).unwrap(), fs::symlink_metadata(&b).unwrap());
        let facts = |m: &fs::Metadata| (m.mode(), m.mtime(), m.mtime_nsec(), m.uid(), m.gid());
        assert_eq!(facts(&x), facts(&y), "{}", name.display());
        if x.is_symlink() {
            assert_eq!(fs::read_link(&a).unwrap(), fs::read_link(&b).unwrap());
        } else {
            assert_eq!(xattr_acl::list(&a), xattr_acl::list(&b), "{}", name.display());
            for attribute in xattr_acl::list(&a) {
                assert_eq!(xattr_acl::get(&a, &attribute), xattr_acl::get(&b, &attribute), "{}", name.display());
            }
        }
        if x.is_file() {
            assert_file(&b, &fs::read(&a).unwrap());
        }
    }
}

#[test]
fn export_equals_the_mounted_tree() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    fill(&mount.path);
    mount.unmount();
    let export = volume.scratch().join("export");
    volume.ok(["export".as_ref(), volume.cipher.as_os_str(), export.as_os_str()]);
    let mount = volume.mount_with(&["ro"]);
    compare(&mount.path, &export);
    assert!(fs::metadata(export.join("sparse")).unwrap().blocks() < 10_000, "holes stay holes");
}

/// An export goes to a place of its own: it never writes over what is there.
#[test]
fn export_refuses_a_full_destination() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("precious"), b"from the volume").unwrap();
    mount.unmount();
    let export = volume.scratch().join("export");
    fs::create_dir(&export).unwrap();
    fs::write(export.join("precious"), b"was here before").unwrap();
    let output = volume.run(["export".as_ref(), volume.cipher.as_os_str(), export.as_os_str()]);
    assert!(!output.status.success());
    assert_file(&export.join("precious"), b"was here before");
}

#[test]
fn cat_writes_one_file() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    fill(&mount.path);
    mount.unmount();
    let cat = |path: &str| volume.run(["cat".as_ref(), volume.cipher.as_os_str(), OsStr::new(path)]);
    for path in ["directory/file5", "/directory/file5"] {
        let output = cat(path);
        assert!(output.status.success(), "{}", text(&output));
        assert_same(&output.stdout, &pattern(5, 100_000), path);
    }
    assert_eq!(cat("directory/file0").stdout, b"");
    for path in ["none", "directory", "directory/file1/below"] {
        let output = cat(path);
        assert_eq!(output.status.code(), Some(1), "{path}: {}", text(&output));
        assert!(output.stdout.is_empty());
    }
}

/// Every file is recoverable from itself and a CMK: without the volume file names are lost, content is not.
#[test]
fn content_survives_the_loss_of_the_volume_file() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    let mut want = BTreeSet::new();
    fs::create_dir_all(mount.join("a/b")).unwrap();
    for (index, name) in ["one", "a/two", "a/b/three"].iter().enumerate() {
        let content = pattern(index as u64, 5000 + index * 3000);
        fs::write(mount.join(name), &content).unwrap();
        want.insert(content);
    }
    mount.unmount();
    fs::remove_file(volume.cipher.join("envelopefs.toml")).unwrap();
    volume.fails(3, ["mount".as_ref(), volume.cipher.as_os_str(), volume.mountpoint.as_os_str()]);
    let (cmk, export) = (volume.cmk(), volume.scratch().join("export"));
    let arguments = ["export".as_ref(), "--cmk".as_ref(), cmk.as_ref(), volume.cipher.as_os_str(), export.as_os_str()];
    volume.ok(arguments);
    let files = walk(&export).into_iter().filter(|path| fs::symlink_metadata(path).unwrap().is_file());
    let got: BTreeSet<Vec<u8>> =
        files.map(|path| fs::read(path).unwrap()).filter(|content| content.len() >= 5000).collect();
    assert_eq!(got.len(), want.len());
    assert!(got == want, "contents differ");
}

fn damaged() -> (Volume, PathBuf) {
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("good"), pattern(1, 50_000)).unwrap();
    fs::write(mount.join("bad"), pattern(2, 50_000)).unwrap();
    let ino = fs::metadata(mount.join("bad")).unwrap().ino();
    mount.unmount();
    let backing = volume.backing_of(ino);
    let file = read_write(&backing);
    let mut byte = [0];
    let at = DATA_START + 3 * PAGE + 1000;
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    (volume, backing)
}

#[test]
fn damage_is_exit_code_7_and_the_rest_is_exported() {
    needs!(have_mount);
    let (volume, _) = damaged();
    let message = volume.fails(7, ["cat".as_ref(), volume.cipher.as_os_str(), "bad".as_ref()]);
    assert!(message.contains("bad"), "{message}");
    let export = volume.scratch().join("export");
    let message = volume.fails(7, ["export".as_ref(), volume.cipher.as_os_str(), export.as_os_str()]);
    assert!(message.contains("bad"), "{message}");
    assert_file(&export.join("good"), &pattern(1, 50_000));
    // Nothing unauthenticated is passed off as content: what is exported of the damaged file is right where it is data.
    if let Ok(got) = fs::read(export.join("bad")) {
        let want = pattern(2, 50_000);
        let differs = got.iter().zip(&want).filter(|(a, b)| a != b).count();
        assert!(differs <= 4048, "{differs} bytes differ");
    }
}

/// The volume file is authenticated: no edit of it changes how a volume is mounted.
#[test]
fn an_edited_volume_file_is_refused() {
    needs!(have_mount);
    let volume = Volume::new();
    let path = volume.cipher.join("envelopefs.toml");
    let text = fs::read_to_string(&path).unwrap();
    let mount = ["mount".as_ref(), volume.cipher.as_os_str(), volume.mountpoint.as_os_str()];
    let mut edits = vec![
        text.replace("plaintext_names = false", "plaintext_names = true"),
        text.replace("version = 1", "version = 2"),
        text.replace("header_pages = 1", "header_pages = 2"),
        text.lines().next().unwrap().to_owned(),
        String::new(),
        "not toml at all [[[".to_owned(),
    ];
    // One character of each value.
    for (number, line) in text.lines().enumerate().filter(|(_, line)| line.contains('=') && line.contains('"')) {
        let quote = line.find('"').unwrap();
        let Some(old) = line[quote + 1..].chars().next().filter(char::is_ascii_alphanumeric) else { continue };
        let new = if old == 'a' { 'b' } else { 'a' };
        let edited = format!("{}{new}{}", &line[..=quote], &line[quote + 2..]);
        let lines: Vec<_> = text.lines().enumerate().map(|(n, l)| if n == number { &edited } else { l }).collect();
        edits.push(lines.join("\n"));
    }
    for edit in edits {
        if edit == text {
            continue;
        }
        fs::write(&path, &edit).unwrap();
        let output = volume.run(mount);
        assert!(
            matches!(output.status.code(), Some(3 | 4)),
            "{:?} for:\n{edit}\n{}",
            output.status,
            crate::common::text(&output)
        );
        assert!(!crate::common::text(&output).contains("panicked"));
    }
    fs::write(&path, &text).unwrap();
    volume.mount().unmount();
}

/// A second volume under the same CMK, put in the place of the first one, is not the one this host knows.
#[test]
fn a_swapped_volume_file_is_refused() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("file"), b"content").unwrap();
    mount.unmount();
    let other = volume.scratch().join("other");
    let cmk = volume.cmk();
    volume.ok(["init".as_ref(), "--cmk".as_ref(), cmk.as_ref(), other.as_os_str()]);
    fs::copy(other.join("envelopefs.toml"), volume.cipher.join("envelopefs.toml")).unwrap();
    // Mounting may succeed in so far as the other volume is known too; its keys open nothing here.
    let output = volume.run(["mount".as_ref(), volume.cipher.as_os_str(), volume.mountpoint.as_os_str()]);
    assert!(!output.status.success(), "a root directory of another volume must not be served");
    assert!(!text(&output).contains("panicked"));
}

/// A backup is a copy of the encrypted directory, made by any tool that keeps symbolic links and attributes.
#[test]
fn a_copied_directory_is_the_same_volume() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    fill(&mount.path);
    mount.unmount();
    let (copy, archive) = (volume.scratch().join("copy"), volume.scratch().join("archive.tar"));
    tool("cp", &["-a".as_ref(), volume.cipher.as_os_str(), copy.as_os_str()]);
    let restored = volume.scratch().join("restored");
    fs::create_dir(&restored).unwrap();
    // Without -S: the tails of files come back as zeros instead of holes.
    let xattrs = OsStr::new("--xattrs");
    tool(
        "tar",
        &[xattrs, "-cf".as_ref(), archive.as_os_str(), "-C".as_ref(), volume.scratch().as_os_str(), "cipher".as_ref()],
    );
    tool("tar", &[xattrs, "-xf".as_ref(), archive.as_os_str(), "-C".as_ref(), restored.as_os_str()]);
    let original = volume.mount_with(&["ro"]);
    for (index, directory) in [copy, restored.join("cipher")].iter().enumerate() {
        let mountpoint = volume.scratch().join(format!("mnt{index}"));
        fs::create_dir(&mountpoint).unwrap();
        let mount = volume.mount_other(directory, &mountpoint);
        compare(&original.path, &mount.path);
        // It is a whole volume, not only a readable one.
        fs::write(mount.join("new"), b"new").unwrap();
        mount.unmount();
    }
}
