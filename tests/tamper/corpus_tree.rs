//! Corpus cases 19 to 24: entries, directories, other kinds of objects, the volume file. Each on a real mount.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, symlink};

use rustix::fs::{CWD, Mode, mkfifoat};

use crate::common::*;
use crate::forge::Insider;
use crate::needs;
use crate::reported::*;
use crate::scene::*;

const ID: &str = ".envelopefs.dir";

#[test]
fn case_19_an_entry_moved_across_directories() {
    needs!(have_mount);
    let scene = Scene::new();
    let (d, e) = (scene.backing("d"), scene.backing("e"));
    let raw = scene.victim.file_name().unwrap();
    fs::rename(&scene.victim, d.join(raw)).unwrap();
    // And a copy that keeps its name where it belongs.
    fs::copy(d.join(raw), e.join(raw)).unwrap();
    scene.assert_reported(&[hidden("name-auth"), hidden("name-auth")], &[]);
    let mount = scene.mount();
    assert_eq!(names(&mount.path), ["d", "e", "other"]);
    for directory in ["d", "e"] {
        assert_eq!(names(&mount.join(directory)), ["inside"]);
        assert_file(&mount.join(directory).join("inside"), directory.as_bytes());
        assert_errno(File::open(mount.join(directory).join("victim")), libc::ENOENT);
    }
    assert_errno(File::open(mount.join("victim")), libc::ENOENT);
    assert_told(&mount, "name-auth", &d.join(raw), None);
    // What does not open is never deleted with its directory.
    fs::remove_file(mount.join("d/inside")).unwrap();
    assert_errno(fs::remove_dir(mount.join("d")), libc::ENOTEMPTY);
    assert_expendable(&scene, mount, &[]);
    // Back at its place it is whole.
    fs::rename(d.join(raw), &scene.victim).unwrap();
    assert_file(&scene.mount().join("victim"), &pattern(1, SIZE));
}

#[test]
fn case_19_swapped_directory_ids() {
    needs!(have_mount);
    let scene = Scene::new();
    let (d, e) = (scene.backing("d"), scene.backing("e"));
    let ids = [&d, &e].map(|directory| fs::read_link(directory.join(ID)).unwrap());
    for (directory, id) in [(&d, &ids[1]), (&e, &ids[0])] {
        fs::remove_file(directory.join(ID)).unwrap();
        symlink(id, directory.join(ID)).unwrap();
    }
    // Nothing proves which of the two has the wrong record.
    scene.assert_lasting(&[hidden("name-auth"), hidden("name-auth")]);
    let mount = scene.mount();
    for (name, backing) in [("d", &d), ("e", &e)] {
        assert!(names(&mount.join(name)).is_empty(), "an authentic id, but no name opens under it");
        assert_errno(File::open(mount.join(name).join("inside")), libc::ENOENT);
        let hidden = fs::read_dir(backing).unwrap().map(|entry| entry.unwrap().path()).find(|path| !path.ends_with(ID));
        assert_told(&mount, "name-auth", &hidden.unwrap(), None);
    }
    assert_bad_blocks(&mount.join("victim"), &pattern(1, SIZE), &[]);
    assert_expendable(&scene, mount, &[]);
    assert_eq!(fs::read_link(d.join(ID)).unwrap(), ids[1], "left as it is");
}

#[test]
fn case_19_deleted_and_forged_directory_ids() {
    needs!(have_mount);
    for how in ["deleted", "forged", "a file", "a directory", "too long"] {
        let scene = Scene::new();
        let d = scene.backing("d");
        let id = d.join(ID);
        let record = fs::read_link(&id).unwrap();
        fs::remove_file(&id).unwrap();
        match how {
            "forged" => {
                let mut text = record.to_str().unwrap().to_owned().into_bytes();
                text[3] = if text[3] == b'A' { b'B' } else { b'A' };
                symlink(String::from_utf8(text).unwrap(), &id).unwrap();
            }
            "a file" => fs::write(&id, record.to_str().unwrap()).unwrap(),
            "a directory" => fs::create_dir(&id).unwrap(),
            "too long" => symlink("A".repeat(2000), &id).unwrap(),
            _ => {}
        }
        scene.assert_lasting(&[whole("dir-id", "/d")]);
        let mount = scene.mount();
        let listed = fs::read_dir(mount.join("d")).and_then(|all| all.collect::<Result<Vec<_>, _>>());
        assert_errno(listed, libc::EIO);
        assert_errno(File::open(mount.join("d/inside")), libc::EIO);
        assert_errno(File::create(mount.join("d/new")), libc::EIO);
        assert_errno(fs::create_dir(mount.join("d/new")), libc::EIO);
        assert_errno(fs::rename(mount.join("victim"), mount.join("d/victim")), libc::EIO);
        assert_told(&mount, "dir-id", &d, None);
        assert_file(&mount.join("e/inside"), b"e");
        mount.unmount();
        match how {
            "deleted" => assert!(fs::symlink_metadata(&id).is_err(), "an id is never made anew"),
            "a directory" => fs::remove_dir(&id).unwrap(),
            _ => fs::remove_file(&id).unwrap(),
        }
        let _ = fs::remove_file(&id);
        symlink(&record, &id).unwrap();
        assert_file(&scene.mount().join("d/inside"), b"d");
    }
}

#[test]
fn case_20_other_kinds_in_a_files_place() {
    needs!(have_mount);
    let outside = scratch();
    let secret = outside.path().join("outside");
    fs::write(&secret, b"never to be served").unwrap();
    for kind in ["fifo", "link", "relative link", "directory", "device"] {
        if kind == "device" && !is_root() {
            eprintln!("SKIPPED case 20, device: needs root");
            continue;
        }
        let scene = Scene::new();
        fs::remove_file(&scene.victim).unwrap();
        match kind {
            "fifo" => mkfifoat(CWD, &scene.victim, Mode::from_raw_mode(0o666)).unwrap(),
            "link" => symlink(&secret, &scene.victim).unwrap(),
            // To an authentic file of the volume, by its backing name.
            "relative link" => symlink(scene.other.file_name().unwrap(), &scene.victim).unwrap(),
            "directory" => fs::create_dir(&scene.victim).unwrap(),
            _ => {
                let zero = rustix::fs::makedev(1, 5);
                let mode = Mode::from_raw_mode(0o666);
                rustix::fs::mknodat(CWD, &scene.victim, rustix::fs::FileType::CharacterDevice, mode, zero).unwrap();
            }
        }
        match kind {
            "fifo" | "device" => scene.assert_lasting(&[whole("special", "/victim")]),
            "directory" => scene.assert_reported(&[whole("dir-id", "/victim")], &[]),
            _ => scene.assert_reported(&[whole("symlink-auth", "/victim")], &[]),
        }
        let mount = scene.mount();
        let path = mount.join("victim");
        let shown = fs::symlink_metadata(&path).map(|metadata| metadata.file_type());
        match kind {
            // What it is, it is to the caller too; the kernel opens it, not the daemon. A mount honours no devices (-o dev).
            "fifo" => assert!(shown.is_ok_and(|shown| !shown.is_file())),
            "device" => {
                assert!(shown.is_ok_and(|shown| !shown.is_file()));
                assert_errno(File::open(&path), libc::EACCES);
            }
            "directory" => {
                let listed = fs::read_dir(&path).and_then(|all| all.collect::<Result<Vec<_>, _>>());
                assert_errno(listed, libc::EIO);
                assert_told(&mount, "dir-id", &scene.victim, None);
            }
            _ => {
                assert_errno(fs::read_link(&path), libc::EIO);
                assert_errno(File::open(&path), libc::EIO);
                assert_told(&mount, "symlink-auth", &scene.victim, None);
            }
        }
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
        assert!(!opened.is_ok_and(|file| file.read_at(&mut [0; 5], 0).is_ok_and(|got| got > 0)), "{kind}");
        let written = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path);
        assert!(!written.is_ok_and(|mut file| file.write_all(b"overwritten").is_ok()), "{kind}");
        assert_eq!(fs::read(&secret).unwrap(), b"never to be served");
        if kind == "directory" {
            fs::remove_dir(&path).unwrap();
        } else {
            assert_removable(&mount, "victim");
        }
        assert_expendable(&scene, mount, &[]);
    }
}

/// The exchange happens while the daemon knows the file as a regular one, and while it has it open.
#[test]
fn case_20_a_known_file_is_replaced() {
    needs!(have_mount);
    let scene = Scene::new();
    let other = scene.volume.scratch().join("copy of other");
    fs::copy(&scene.other, &other).unwrap();
    let mount = scene.volume.mount_with(&["ro"]);
    assert_eq!(fs::metadata(mount.join("victim")).unwrap().len(), SIZE as u64);
    let held = File::open(mount.join("other")).unwrap();
    for path in [&scene.victim, &scene.other] {
        // Kept elsewhere, so that nothing else gets its inode number: by that alone an inode is known.
        fs::rename(path, scene.volume.scratch().join(path.file_name().unwrap())).unwrap();
        mkfifoat(CWD, path, Mode::from_raw_mode(0o666)).unwrap();
    }
    let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(mount.join("victim"));
    let got = errno(open.and_then(|file| file.read_at(&mut [0; 10], 0)));
    assert!(got == libc::EIO || got == libc::ESTALE, "errno {got}");
    assert_told(&mount, "entry-replaced", &scene.victim, None);
    // By another authentic file of the same size: the inode that the kernel knows is not that one.
    let open = {
        fs::remove_file(&scene.victim).unwrap();
        fs::copy(&other, &scene.victim).unwrap();
        File::open(mount.join("victim")).and_then(|file| file.read_at(&mut [0; 10], 0))
    };
    assert_errno(open, libc::EIO);
    // Who had it open has the file, not what stands at its name.
    let mut content = vec![0; SIZE];
    held.read_exact_at(&mut content, 0).unwrap();
    assert_same(&content, &pattern(2, SIZE), "the open file");
    drop(held);
    mount.unmount();
}

#[test]
fn case_21_authentic_objects_elsewhere_are_accepted() {
    needs!(have_mount);
    let scene = Scene::new();
    let (d, e) = (scene.backing("d"), scene.backing("e"));
    // Siblings swapped.
    let temporary = scene.victim.with_file_name("temporary");
    let swap = |a: &std::path::Path, b: &std::path::Path| {
        fs::rename(a, &temporary).unwrap();
        fs::rename(b, a).unwrap();
        fs::rename(&temporary, b).unwrap();
    };
    swap(&scene.victim, &scene.other);
    // Whole directories swapped.
    swap(&d, &e);
    scene.assert_clean();
    let mount = scene.mount();
    assert_file(&mount.join("victim"), &pattern(2, SIZE));
    assert_file(&mount.join("other"), &pattern(1, SIZE));
    assert_file(&mount.join("d/inside"), b"e");
    assert_file(&mount.join("e/inside"), b"d");
    mount.unmount();
    // Another authentic file of the volume in a file's place.
    let inside = scene.backing("d/inside");
    fs::copy(&inside, &scene.victim).unwrap();
    scene.assert_clean();
    let mount = scene.mount();
    assert_file(&mount.join("victim"), b"e");
    let older = fs::read(&scene.other).unwrap();
    fs::write(mount.join("other"), b"newer content").unwrap();
    mount.unmount();
    // A whole older state of a file; a file emptied.
    fs::write(&scene.other, older).unwrap();
    set_len(&scene.victim, 0);
    scene.assert_clean();
    let mount = scene.mount();
    assert_file(&mount.join("other"), &pattern(1, SIZE));
    assert_file(&mount.join("victim"), b"");
    for sentence in [
        "Another authentic file, symbolic link or directory of the volume in the place of one",
        "A file emptied or removed, or restored as a whole to an older state",
    ] {
        assert_documented(sentence);
    }
    mount.unmount();
}

#[test]
fn case_22_a_directory_id_copied_into_another_directory() {
    needs!(have_mount);
    let scene = Scene::new();
    let (d, e) = (scene.backing("d"), scene.backing("e"));
    fs::remove_file(e.join(ID)).unwrap();
    symlink(fs::read_link(d.join(ID)).unwrap(), e.join(ID)).unwrap();
    // A mount cannot tell: what is made in one of them can be moved to the other.
    let mount = scene.mount();
    fs::write(mount.join("e/made later"), b"later").unwrap();
    assert_file(&mount.join("d/inside"), b"d");
    assert_documented("A directory's id copied into another directory is found by `envelopefs check`, not by a mount");
    mount.unmount();
    // Which of the two comes second, their names below decide. What was in `e` before does not open under the other's id.
    let twice = whole("dir-id-twice", if d < e { "/e" } else { "/d" });
    scene.assert_reported(&[twice.clone(), hidden("name-auth")], &[twice]);
}

#[test]
fn case_23_a_volume_file_wrapped_by_somebody_who_can_only_wrap() {
    needs!(have_mount);
    let scene = Scene::new();
    let insider = Insider::of(&scene.volume);
    let path = scene.volume.cipher.join("envelopefs.toml");
    let good = fs::read(&path).unwrap();
    fs::write(&path, insider.forged_volume_file()).unwrap();
    let words = ["mount".as_ref(), scene.volume.cipher.as_os_str(), scene.volume.mountpoint.as_os_str()];
    let message = scene.volume.fails(3, words);
    assert!(message.contains("another volume key than the one recorded"), "{message}");
    scene.volume.fails(3, ["check".as_ref(), scene.volume.cipher.as_os_str()]);
    // The other commands that read it refuse as well.
    let out = scene.volume.scratch().join("out");
    scene.volume.fails(3, ["export".as_ref(), scene.volume.cipher.as_os_str(), out.as_os_str()]);
    fs::write(&path, good).unwrap();
    assert_file(&scene.mount().join("victim"), &pattern(1, SIZE));
}

/// 24 of doc/FORMAT.md: what a directory's own CMKs are is under the record's MAC.
#[test]
fn case_24_a_directory_record_with_another_list_of_cmks() {
    needs!(have_mount);
    let scene = Scene::new();
    let insider = Insider::of(&scene.volume);
    let d = scene.backing("d");
    let old = fs::read_link(d.join(ID)).unwrap();
    let key = &insider.keys.dir_id;
    let text = std::os::unix::ffi::OsStrExt::as_bytes(old.as_os_str());
    let record = envelopefs::format::dir_id::DirRecord::decode(text, key).unwrap();
    // Put in by somebody without the volume key: the MAC of the record without a list does not cover it.
    let raw = data_encoding::BASE64URL_NOPAD.decode(text).unwrap();
    let mut forged = raw[..32].to_vec();
    forged.extend(b"\x07keyfile\x04\x00evil");
    forged.extend(&raw[32..]);
    fs::remove_file(d.join(ID)).unwrap();
    symlink(data_encoding::BASE64URL_NOPAD.encode(&forged), d.join(ID)).unwrap();
    // Its names prove the id that still stands in it, and no directory of this volume was ever given a CMK.
    scene.assert_reported(&[whole("dir-id", "/d")], &[]);
    let mount = scene.mount();
    assert_errno(File::open(mount.join("d/inside")), libc::EIO);
    assert_errno(File::create(mount.join("d/new")), libc::EIO);
    assert_told(&mount, "dir-id", &d, None);
    assert_expendable(&scene, mount, &[]);
    assert!(record.keys.is_none());
}

#[test]
fn case_19_swapped_companions_of_long_names() {
    needs!(have_mount);
    let scene = Scene::new();
    let mount = scene.mount();
    let long = ["x".repeat(250), "y".repeat(250)];
    for name in &long {
        fs::write(mount.join(name), name).unwrap();
    }
    mount.unmount();
    let tree = scene.volume.cipher.join("tree");
    let companions: Vec<_> = walk(&tree).into_iter().filter(|path| path.to_str().unwrap().ends_with(".name")).collect();
    let targets: Vec<_> = companions.iter().map(|path| fs::read_link(path).unwrap()).collect();
    for (path, target) in companions.iter().zip(targets.iter().rev()) {
        fs::remove_file(path).unwrap();
        symlink(target, path).unwrap();
    }
    scene.assert_lasting(&[hidden("companion"), hidden("companion")]);
    let mount = scene.mount();
    assert_eq!(names(&mount.path), ["d", "e", "other", "victim"], "neither is shown under the other's name");
    for name in &long {
        assert_file(&mount.join(name), name.as_bytes());
    }
    assert_told(&mount, "name-auth", &companions[0].with_extension(""), None);
    // A name that is made anew gets its own companion.
    fs::remove_file(mount.join(&long[0])).unwrap();
    fs::write(mount.join(&long[0]), b"anew").unwrap();
    mount.unmount();
    let mount = scene.mount();
    assert_eq!(names(&mount.path).len(), 5);
    assert_file(&mount.join(&long[0]), b"anew");
    assert_expendable(&scene, mount, &[]);
}

#[test]
fn case_21_swapped_targets_of_long_links() {
    needs!(have_mount);
    let scene = Scene::new();
    let mount = scene.mount();
    for name in ["one", "two"] {
        symlink(name.repeat(700), mount.join(name)).unwrap();
        symlink(name, mount.join(format!("short {name}"))).unwrap();
    }
    mount.unmount();
    // The objects with the targets are bound to their links.
    let objects = walk(&scene.volume.cipher.join("overflow"));
    let contents: Vec<_> = objects.iter().map(|path| fs::read(path).unwrap()).collect();
    for (path, content) in objects.iter().zip(contents.iter().rev()) {
        fs::write(path, content).unwrap();
    }
    let links = ["one", "two"].map(|name| scene.backing(name));
    scene.assert_lasting(&[whole("symlink-auth", "/one"), whole("symlink-auth", "/two")]);
    let mount = scene.mount();
    for (name, link) in ["one", "two"].iter().zip(&links) {
        assert_errno(fs::read_link(mount.join(name)), libc::EIO);
        assert_told(&mount, "symlink-auth", link, None);
        assert_removable(&mount, name);
    }
    mount.unmount();
    // The links themselves are not bound to a place.
    let shorts = ["short one", "short two"].map(|name| scene.backing(name));
    let targets = shorts.clone().map(|path| fs::read_link(path).unwrap());
    for (path, target) in shorts.iter().zip(targets.iter().rev()) {
        fs::remove_file(path).unwrap();
        symlink(target, path).unwrap();
    }
    scene.assert_clean();
    let mount = scene.mount();
    assert_eq!(fs::read_link(mount.join("short one")).unwrap().to_str(), Some("two"));
    assert_eq!(fs::read_link(mount.join("short two")).unwrap().to_str(), Some("one"));
    assert_expendable(&scene, mount, &[]);
}

#[test]
fn attributes_belong_to_their_name_and_object() {
    needs!(have_mount);
    let scene = Scene::new();
    let mount = scene.mount();
    let set = |path: &str, name: &str, value: &str| {
        rustix::fs::setxattr(mount.join(path), name, value.as_bytes(), rustix::fs::XattrFlags::empty()).unwrap();
    };
    set("victim", "user.a", "a of victim");
    set("victim", "user.b", "b of victim");
    set("other", "user.a", "a of other");
    mount.unmount();
    let list = |path: &std::path::Path| -> Vec<String> {
        let mut names = vec![0; 4096];
        let len = rustix::fs::listxattr(path, &mut names[..]).unwrap();
        let all = names[..len].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user.e."));
        all.map(|name| String::from_utf8(name.to_vec()).unwrap()).collect()
    };
    let get = |path: &std::path::Path, name: &str| {
        let mut value = vec![0; 4096];
        let len = rustix::fs::getxattr(path, name, &mut value[..])?;
        value.truncate(len);
        Ok::<_, rustix::io::Errno>(value)
    };
    let put = |path: &std::path::Path, name: &str, value: &[u8]| {
        rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    let mine = list(&scene.victim);
    let values: Vec<_> = mine.iter().map(|name| get(&scene.victim, name).unwrap()).collect();
    // Values under each other's names; and another file's attribute.
    put(&scene.victim, &mine[0], &values[1]);
    put(&scene.victim, &mine[1], &values[0]);
    let theirs = list(&scene.other);
    put(&scene.victim, &theirs[0], &get(&scene.other, &theirs[0]).unwrap());
    let attribute = whole("xattr-auth", "/victim");
    scene.assert_lasting(&[attribute.clone(), attribute.clone(), attribute]);
    let mount = scene.mount();
    for name in ["user.a", "user.b"] {
        assert_errno(get(&mount.join("victim"), name), libc::EIO);
    }
    let mut shown = vec![0; 4096];
    assert_eq!(rustix::fs::listxattr(mount.join("victim"), &mut shown[..]).unwrap(), 0);
    assert_eq!(get(&mount.join("other"), "user.a").unwrap(), b"a of other");
    assert_told(&mount, "xattr-auth", &scene.victim, None);
    assert_file(&mount.join("victim"), &pattern(1, SIZE));
    // They can be set anew.
    put(&mount.join("victim"), "user.a", b"anew");
    assert_eq!(get(&mount.join("victim"), "user.a").unwrap(), b"anew");
    assert_expendable(&scene, mount, &[]);
}
