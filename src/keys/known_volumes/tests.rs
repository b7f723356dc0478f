//! Tests of the records of this host: concurrency, damage, modes.

use super::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

fn volume(n: u8) -> KnownVolume {
    KnownVolume {
        volume_id: [n; 16],
        cmks: vec![format!("keyfile:///etc/envelopefs/{n}.json"), "keyfile:///b?key=\"quoted\"".into()],
        directory_cmks: Vec::new(),
        commitment: [n ^ 0xff; 32],
        path: format!("/srv/data\n{n}"),
    }
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().mode() & 0o777
}

fn refusal(known: &KnownVolumes) -> String {
    match known.find(&[1; 16]) {
        Err(KeyError::Config(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn records_are_found_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let known = KnownVolumes::at(dir.path().join("new/envelopefs/known_volumes.toml"));
    assert_eq!(known.find(&[1; 16]).unwrap(), None);
    known.record(&volume(1)).unwrap();
    known.record(&volume(2)).unwrap();
    let changed = KnownVolume { path: "/elsewhere".into(), ..volume(1) };
    known.record(&changed).unwrap();
    assert_eq!(known.find(&[1; 16]).unwrap(), Some(changed));
    assert_eq!(known.find(&[2; 16]).unwrap(), Some(volume(2)));
    assert_eq!(known.find(&[3; 16]).unwrap(), None);
    assert_eq!((mode(known.file()), mode(known.file().parent().unwrap())), (0o600, 0o700));
    let names: Vec<_> = std::fs::read_dir(known.file().parent().unwrap()).unwrap().collect();
    assert_eq!(names.len(), 2, "the records and their lock: {names:?}");
}

#[test]
fn directory_cmks_are_added_to_a_record_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let known = KnownVolumes::at(dir.path().join("known_volumes.toml"));
    let uris = |n: std::ops::Range<u8>| n.map(|n| format!("keyfile:///{n}?key=k")).collect::<Vec<_>>();
    assert!(!known.trust_directory_cmks(&[1; 16], &uris(0..1)).unwrap());
    known.record(&volume(1)).unwrap();
    assert!(!std::fs::read_to_string(known.file()).unwrap().contains("directory"), "nothing to tell, nothing told");
    assert!(known.trust_directory_cmks(&[1; 16], &uris(0..2)).unwrap());
    let before = known.file().metadata().unwrap().ino();
    assert!(known.trust_directory_cmks(&[1; 16], &uris(1..2)).unwrap());
    assert_eq!(known.file().metadata().unwrap().ino(), before, "known already");
    assert!(known.trust_directory_cmks(&[1; 16], &uris(1..3)).unwrap());
    assert_eq!(known.find(&[1; 16]).unwrap(), Some(KnownVolume { directory_cmks: uris(0..3), ..volume(1) }));
}

#[test]
fn an_unchanged_record_is_not_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let known = KnownVolumes::at(dir.path().join("known_volumes.toml"));
    known.record(&volume(1)).unwrap();
    let before = known.file().metadata().unwrap().ino();
    known.record(&volume(1)).unwrap();
    assert_eq!(known.file().metadata().unwrap().ino(), before);
}

#[test]
fn concurrent_writers_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("known_volumes.toml");
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let file = file.clone();
            scope.spawn(move || {
                let known = KnownVolumes::at(file);
                for n in 0..8 {
                    known.record(&volume(thread * 8 + n)).unwrap();
                    // Readers take no lock and never see half a file.
                    assert!(known.find(&[thread * 8 + n; 16]).unwrap().is_some());
                }
            });
        }
    });
    let known = KnownVolumes::at(file);
    assert!((0..64).all(|n| known.find(&[n; 16]).unwrap() == Some(volume(n))));
}

#[test]
fn a_malformed_file_is_named_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let known = KnownVolumes::at(dir.path().join("known_volumes.toml"));
    let good = format!(
        "version = 1\n[[volume]]\nid = \"{}\"\ncmks = []\ncommitment = \"{}\"\n",
        "01".repeat(16),
        "02".repeat(32)
    );
    let cases = [
        (good.clone() + "nonsense", 6),
        (good.replace("0101", "01zz"), 3),
        (good.replace("0202", "02"), 5),
        (good.replace("cmks", "kmcs"), 4),
        (good.replace("version = 1", "version = 2"), 1),
        (good.clone() + good.trim_start_matches("version = 1\n"), 7),
    ];
    for (text, line) in cases {
        std::fs::write(known.file(), &text).unwrap();
        let text = refusal(&known);
        assert!(text.contains("known_volumes.toml, line ") && text.contains(&format!("line {line}:")), "{text}");
        // And it is never written over.
        assert!(known.record(&volume(9)).is_err());
    }
    std::fs::write(known.file(), b"version = 1\n\xff").unwrap();
    assert!(refusal(&known).contains("line 2: not UTF-8"));
    std::fs::write(known.file(), good).unwrap();
    assert_eq!(known.find(&[1; 16]).unwrap().unwrap().commitment, [2; 32]);
}

#[test]
fn a_file_that_others_may_write_is_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let known = KnownVolumes::at(dir.path().join("known_volumes.toml"));
    known.record(&volume(1)).unwrap();
    std::fs::set_permissions(known.file(), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(known.find(&[1; 16]).unwrap().is_some());
    std::fs::set_permissions(known.file(), std::fs::Permissions::from_mode(0o664)).unwrap();
    assert!(refusal(&known).contains("chmod 644"));
}

#[test]
fn the_directory_follows_user_and_environment() {
    let find = |root: bool, set: &[(&str, &str)]| {
        let set: std::collections::HashMap<_, _> = set.iter().copied().collect();
        config_dir_in(root, &|name| set.get(name).map(|v| v.into())).map(|dir| dir.display().to_string())
    };
    let home = ("HOME", "/home/u");
    assert_eq!(find(true, &[home]).unwrap(), "/etc/envelopefs");
    assert_eq!(find(false, &[home]).unwrap(), "/home/u/.config/envelopefs");
    assert_eq!(find(false, &[home, ("XDG_CONFIG_HOME", "/c")]).unwrap(), "/c/envelopefs");
    assert_eq!(find(false, &[home, ("XDG_CONFIG_HOME", "c")]).unwrap(), "/home/u/.config/envelopefs");
    for root in [false, true] {
        assert_eq!(find(root, &[home, (CONFIG_DIR_VARIABLE, "/x")]).unwrap(), "/x");
        assert!(find(root, &[home, (CONFIG_DIR_VARIABLE, "x")]).is_err());
    }
    assert!(find(false, &[]).is_err());
}
