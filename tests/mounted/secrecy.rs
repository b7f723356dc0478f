//! What the backing directory gives away: no content, name, target or attribute, in any of the usual spellings.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;

use data_encoding::{BASE32, BASE64, BASE64URL_NOPAD, HEXLOWER, HEXUPPER};

use super::xattr_acl;
use crate::common::*;
use crate::needs;

const SECRETS: [&str; 7] = [
    "content-Zebra-7431-of-the-file",
    "name-Quagga-8842-of-a-file",
    "directory-Okapi-9953-name",
    "target-Tapir-1064-of-a-link",
    "attribute-Dugong-2175-name",
    "value-Manatee-3286-of-it",
    "Pangolin-4397-in-a-long-name",
];

/// All bytes that anybody with the backing directory can read: contents, names, targets, attributes.
fn everything(volume: &Volume) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for path in walk(&volume.cipher) {
        let shown = path.display().to_string();
        all.push((format!("name {shown}"), path.file_name().unwrap().as_bytes().to_vec()));
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_symlink() {
            all.push((format!("target {shown}"), fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()));
            continue;
        }
        if metadata.is_file() {
            all.push((format!("content {shown}"), fs::read(&path).unwrap()));
        }
        for name in xattr_acl::list(&path) {
            let value = xattr_acl::get(&path, &name).unwrap();
            all.push((format!("attribute {shown}"), [name.as_bytes(), b"=", &value].concat()));
        }
    }
    all
}
/// Spellings of a secret. base64 has three alignments: the middle of each encodes alike wherever it stands.
fn spellings(secret: &str) -> Vec<Vec<u8>> {
    let bytes = secret.as_bytes();
    let reversed: Vec<u8> = bytes.iter().rev().copied().collect();
    let mut all = vec![bytes.to_vec(), reversed, HEXLOWER.encode(bytes).into(), HEXUPPER.encode(bytes).into()];
    all.push(BASE32.encode(&bytes[..20]).into());
    for skip in 0..3 {
        let whole = (bytes.len() - skip) / 3 * 3;
        all.push(BASE64.encode(&bytes[skip..skip + whole]).into());
        all.push(BASE64URL_NOPAD.encode(&bytes[skip..skip + whole]).into());
    }
    all.push(secret.encode_utf16().flat_map(u16::to_le_bytes).collect());
    all
}
fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn no_plaintext_in_the_backing_directory() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount_with(&["commit=1"]);
    let [content, name, directory, target, attribute, value, long] = SECRETS;
    let directory = mount.join(directory);
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join(name), content.repeat(1000)).unwrap();
    // Rewritten, shortened, grown, renamed: every path that writes.
    let file = super::content::read_write(&directory.join(name));
    file.set_len(5000).unwrap();
    file.set_len(9000).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, content.as_bytes(), 8000).unwrap();
    fs::write(directory.join(format!("{long}{}", "x".repeat(220))), content).unwrap();
    fs::rename(directory.join(name), directory.join(format!("{name}2"))).unwrap();
    symlink(target, directory.join("link")).unwrap();
    symlink(target.repeat(100), directory.join("long link")).unwrap();
    for path in [&directory.join(format!("{name}2")), &directory] {
        xattr_acl::set(path, &format!("user.{attribute}"), value.as_bytes()).unwrap();
    }
    if is_root() {
        let trusted = format!("trusted.{attribute}");
        rustix::fs::lsetxattr(directory.join("link"), trusted, value.as_bytes(), rustix::fs::XattrFlags::empty())
            .unwrap();
    }
    // In the middle of things, after a crash, and at rest.
    file.sync_all().unwrap();
    check(&everything(&volume), "mounted");
    drop(file);
    let log = mount.log();
    mount.kill();
    check(&everything(&volume), "killed");
    let mount = volume.mount();
    fs::write(mount.join(name), content).unwrap();
    fs::remove_file(mount.join(name)).unwrap();
    mount.unmount();
    check(&everything(&volume), "unmounted");
    assert!(!log.contains(content) && !log.contains(value), "plaintext in the log");
}
fn check(all: &[(String, Vec<u8>)], stage: &str) {
    for secret in SECRETS {
        for spelling in spellings(secret) {
            for (place, bytes) in all {
                assert!(!contains(bytes, &spelling), "{secret} stands in {place} ({stage})");
            }
        }
    }
}

/// Equal things do not look equal below: names in two directories, contents of two files, versions of one block.
#[test]
fn equal_plaintexts_have_different_ciphertexts() {
    needs!(have_mount);
    use std::os::unix::fs::MetadataExt as _;
    let volume = Volume::new();
    let mount = volume.mount();
    let content = pattern(1, PLAIN as usize);
    let mut inodes = Vec::new();
    for directory in ["a", "b"] {
        fs::create_dir(mount.join(directory)).unwrap();
        let path = mount.join(directory).join("same name");
        fs::write(&path, &content).unwrap();
        inodes.push(fs::metadata(&path).unwrap().ino());
    }
    mount.unmount();
    let [one, two] = [inodes[0], inodes[1]].map(|ino| volume.backing_of(ino));
    assert_ne!(one.file_name(), two.file_name());
    let bytes =
        |path: &std::path::Path| fs::read(path).unwrap()[DATA_START as usize..(DATA_START + PAGE) as usize].to_vec();
    let (first, second) = (bytes(&one), bytes(&two));
    assert_ne!(first, second);
    let mount = volume.mount();
    super::content::read_write(&mount.join("a/same name")).set_len(PLAIN).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&super::content::read_write(&mount.join("a/same name")), &content, 0)
        .unwrap();
    mount.unmount();
    let rewritten = bytes(&one);
    assert_ne!(rewritten, first);
    // No 16-byte piece of ciphertext is repeated between the versions.
    let pieces: std::collections::HashSet<&[u8]> = first[48..].chunks_exact(16).collect();
    assert!(!rewritten[48..].chunks_exact(16).any(|piece| pieces.contains(piece)));
}

/// A block's header holds nothing of its content, and a file of zeros looks like any other.
#[test]
fn zeros_are_encrypted_like_anything_else() {
    needs!(have_mount);
    use std::os::unix::fs::MetadataExt as _;
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("zeros"), vec![0; 50_000]).unwrap();
    let ino = fs::metadata(mount.join("zeros")).unwrap().ino();
    mount.unmount();
    let raw = fs::read(volume.backing_of(ino)).unwrap();
    let last = raw.len() / PAGE as usize;
    for block in raw[DATA_START as usize..last * PAGE as usize].chunks_exact(PAGE as usize) {
        let zeros = block[48..].iter().filter(|&&byte| byte == 0).count();
        assert!(zeros < 100, "{zeros} zero bytes in a block of ciphertext");
    }
}
