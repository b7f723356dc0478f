//! Volumes frozen when their format was released: every later version must open them, byte for byte.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A writable copy of a sample, with the modes that version control does not keep.
fn sample(scratch: &Path, name: &str) -> (PathBuf, String) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples").join(name);
    let status = Command::new("cp").arg("-a").arg(&from).arg(scratch).status().expect("run cp");
    assert!(status.success());
    let copy = scratch.join(name);
    let key = copy.join("cmk.json");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("chmod the keyfile");
    fs::set_permissions(copy.join("volume"), fs::Permissions::from_mode(0o700)).expect("chmod the volume");
    let owner = fs::metadata(scratch).expect("stat");
    for path in [&key, &copy.join("volume")] {
        std::os::unix::fs::chown(path, Some(std::os::unix::fs::MetadataExt::uid(&owner)), None).expect("chown");
    }
    (copy.join("volume"), format!("keyfile://{}", key.display()))
}

fn exported(name: &str) -> tempfile::TempDir {
    let scratch = tempfile::tempdir().expect("scratch directory");
    let (volume, cmk) = sample(scratch.path(), name);
    let output = Command::new(env!("CARGO_BIN_EXE_envelopefs"))
        .args(["export", "--cmk", &cmk])
        .args([&volume, &scratch.path().join("out")])
        .env("ENVELOPEFS_CONFIG_DIR", scratch.path().join("config"))
        .output()
        .expect("run envelopefs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    scratch
}

/// Standard error of a command that must fail with this exit code.
fn refusal(code: i32, config: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_envelopefs"))
        .args(arguments)
        .env("ENVELOPEFS_CONFIG_DIR", config)
        .output()
        .expect("run envelopefs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

/// The other direction, a build without encryption that meets an ordinary volume, is tests/suites/null_cipher.sh.
#[test]
fn a_volume_without_encryption_is_refused() {
    let scratch = tempfile::tempdir().expect("scratch directory");
    let (volume, cmk) = sample(scratch.path(), "null-cipher");
    let (config, out, mountpoint) =
        (scratch.path().join("config"), scratch.path().join("out"), scratch.path().join("mnt"));
    fs::create_dir(&mountpoint).expect("mountpoint");
    let [at, to, mountpoint] = [&volume, &out, &mountpoint].map(|path| path.to_str().expect("UTF-8"));
    for arguments in [
        ["mount", "--cmk", &cmk, at, mountpoint].as_slice(),
        &["mount", "-o", "trust_first_use", at, mountpoint],
        &["export", "--cmk", &cmk, at, to],
        &["check", "--cmk", &cmk, at],
        &["info", at],
    ] {
        let said = refusal(3, &config, arguments);
        assert!(said.contains("suite 65280 (INSECURE-NULL-CIPHER"), "{arguments:?}: {said}");
    }
    // Without the volume file each file still says by itself what it is.
    fs::remove_file(volume.join("envelopefs.toml")).expect("remove the volume file");
    let said = refusal(3, &config, &["export", "--cmk", &cmk, at, to]);
    assert!(said.contains("no file in the tree has a header that verifies"), "{said}");
    assert!(!out.exists());
}

#[test]
fn the_first_format_opens() {
    let scratch = exported("v1");
    let out = scratch.path().join("out");
    let blocks: Vec<u8> = (0..3 * 4048 + 17).map(|i: usize| ((i * 31 + i / 251) % 256) as u8).collect();
    let mut sparse = vec![0; 40483];
    sparse[..5].copy_from_slice(b"start");
    sparse[40480..].copy_from_slice(b"end");
    let long = format!("dir/{}", "n".repeat(255));
    let files: [(&str, &[u8]); 8] = [
        ("small", b"hello, later versions\n"),
        ("empty", b""),
        ("blocks", &blocks),
        ("exact", &[b'x'; 4048]),
        ("sparse", &sparse),
        // Synced, then left growing by a killed daemon.
        ("growing", &[b'g'; 5000]),
        ("dir/sub/caf\u{e9}", b"utf-8 name"),
        (&long, b"long name"),
    ];
    for (name, content) in files {
        assert!(fs::read(out.join(name)).expect(name) == content, "{name} differs");
    }
    assert_eq!(fs::read_link(out.join("dir/link")).expect("link"), Path::new("../small"));
    assert_eq!(fs::read_link(out.join("dir/longlink")).expect("long link"), Path::new(&"t".repeat(2000)));
    let mut names: Vec<_> = fs::read_dir(&out)
        .expect("list")
        .map(|e| e.expect("entry").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    assert_eq!(names, ["blocks", "dir", "empty", "exact", "growing", "small", "sparse"]);
}
