//! `envelopefs check` on real volumes: clean ones are clean, and each manipulation is told by its code, at its path and block.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::Value;

use super::content::{create, read_write};
use super::xattr_acl;
use crate::common::*;
use crate::needs;

pub const BLOCKS: u64 = 20;
pub const SIZE: usize = (BLOCKS * PLAIN) as usize - 1000;

/// What a check printed and how it ended.
pub struct Report {
    pub exit: i32,
    pub value: Value,
}

/// One finding: code, path in the mount, first and last block.
pub type Found = (String, Option<String>, Option<(u64, u64)>);

impl Report {
    pub fn of(volume: &Volume, cipher: &Path, options: &[&str]) -> Self {
        let mut arguments = vec!["check", "--json"];
        arguments.extend(options);
        let output =
            volume.run(arguments.into_iter().map(AsRef::as_ref).chain([cipher.as_os_str()]).collect::<Vec<_>>());
        let shown = text(&output);
        assert!(!shown.contains("panicked"), "{shown}");
        let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {shown}"));
        Self { exit: output.status.code().unwrap(), value }
    }
    pub fn problems(&self) -> &[Value] {
        self.value["problems"].as_array().unwrap()
    }
    pub fn found(&self) -> Vec<Found> {
        let one = |p: &Value| {
            let blocks = p["first_block"].as_u64().map(|first| (first, p["last_block"].as_u64().unwrap()));
            (p["code"].as_str().unwrap().to_owned(), p["path"].as_str().map(str::to_owned), blocks)
        };
        let mut found: Vec<Found> = self.problems().iter().map(one).collect();
        found.sort();
        found
    }
    pub fn count(&self, name: &str) -> u64 {
        self.value["counts"][name].as_u64().unwrap_or_else(|| panic!("no count {name}: {}", self.value))
    }
    #[track_caller]
    pub fn assert(&self, exit: i32, want: &[Found]) {
        let mut want = want.to_vec();
        want.sort();
        assert_eq!(self.found(), want, "{:#}", self.value);
        assert_eq!(self.exit, exit, "{:#}", self.value);
    }
}

pub fn found(code: &str, path: &str) -> Found {
    (code.into(), Some(path.into()), None)
}
pub fn blocks(code: &str, path: &str, first: u64, last: u64) -> Found {
    (code.into(), Some(path.into()), Some((first, last)))
}
pub fn nameless(code: &str) -> Found {
    (code.into(), None, None)
}

pub fn block(index: u64) -> u64 {
    DATA_START + index * PAGE
}
pub fn page(path: &Path, offset: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE as usize];
    File::open(path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    bytes
}
pub fn put(path: &Path, offset: u64, bytes: &[u8]) {
    read_write(path).write_all_at(bytes, offset).unwrap();
}
pub fn flip(path: &Path, offset: u64) {
    let mut byte = [0];
    let file = read_write(path);
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}
/// Makes the checksum of slot A right again.
fn mend_checksum(path: &Path) {
    let slot = page(path, 0);
    let end = PAGE as usize - 4;
    put(path, end as u64, &crc32fast::hash(&slot[..end]).to_le_bytes());
}

pub const LONG: &str = "a name that is so long that it does not fit when it is encrypted, \
    and so stands below under a short form with a companion beside it, as names of more than one hundred and \
    seventy-five bytes do, of which this is one";

/// A volume with one of everything, unmounted. Each case works on a copy.
pub struct Scene {
    pub volume: Volume,
    /// Plain name, path below the CIPHERDIR.
    places: Vec<(String, PathBuf)>,
    cases: std::cell::Cell<u32>,
}

impl Scene {
    pub fn new(options: &[&str]) -> Self {
        let volume = Volume::with_options(options);
        let mount = volume.mount();
        Self::fill(&mount);
        let inodes: Vec<(String, u64)> = walk(&mount.path)
            .iter()
            .map(|p| {
                let name = p.strip_prefix(&mount.path).unwrap().to_str().unwrap().to_owned();
                (name, fs::symlink_metadata(p).unwrap().ino())
            })
            .collect();
        mount.unmount();
        let below: Vec<(u64, PathBuf)> =
            walk(&volume.cipher).into_iter().map(|p| (fs::symlink_metadata(&p).unwrap().ino(), p)).collect();
        let place = |ino: u64| {
            let (_, path) = below.iter().find(|(i, _)| *i == ino).unwrap();
            path.strip_prefix(&volume.cipher).unwrap().to_owned()
        };
        let places = inodes.into_iter().map(|(name, ino)| (name, place(ino))).collect();
        Self { volume, places, cases: 0.into() }
    }
    pub fn fill(mount: &Mount) {
        fs::write(mount.join("victim"), pattern(1, SIZE)).unwrap();
        fs::write(mount.join("other"), pattern(2, SIZE)).unwrap();
        fs::hard_link(mount.join("other"), mount.join("other name")).unwrap();
        File::create(mount.join("empty")).unwrap();
        for directory in ["d", "e"] {
            fs::create_dir(mount.join(directory)).unwrap();
            fs::write(mount.join(directory).join("inside"), directory).unwrap();
        }
        fs::create_dir_all(mount.join("up/sub/deep")).unwrap();
        fs::write(mount.join("up/file"), b"up").unwrap();
        fs::write(mount.join("up/sub/file"), b"sub").unwrap();
        fs::write(mount.join(LONG), b"long").unwrap();
        symlink("victim", mount.join("link")).unwrap();
        symlink("t".repeat(2000), mount.join("long link")).unwrap();
        let sparse = create(&mount.join("sparse"));
        sparse.set_len(1 << 40).unwrap();
        sparse.write_all_at(&pattern(3, 100_000), 1 << 30).unwrap();
        drop(sparse);
        xattr_acl::set(&mount.join("victim"), "user.tag", b"of a file").unwrap();
        xattr_acl::set(&mount.join("empty"), "user.tag", b"of an empty file").unwrap();
        xattr_acl::set(&mount.join("d"), "user.tag", b"of a directory").unwrap();
    }
    /// A copy of the CIPHERDIR: the same volume.
    pub fn case(&self) -> PathBuf {
        self.cases.set(self.cases.get() + 1);
        let copy = self.volume.scratch().join(format!("case{}", self.cases.get()));
        tool("cp", &["-a".as_ref(), self.volume.cipher.as_os_str(), copy.as_os_str()]);
        copy
    }
    /// Where an object of the mount lies in a copy.
    pub fn at(&self, case: &Path, name: &str) -> PathBuf {
        let (_, place) = self.places.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}"));
        case.join(place)
    }
    #[track_caller]
    fn expect(&self, exit: i32, want: &[Found], tamper: impl FnOnce(&Path)) {
        let case = self.case();
        tamper(&case);
        Report::of(&self.volume, &case, &[]).assert(exit, want);
        fs::remove_dir_all(case).unwrap();
    }
}

#[test]
fn clean_volumes_of_every_kind_are_clean() {
    needs!(have_mount);
    for options in [&[][..], &["--plaintext-names"], &["--key-mode", "per-file"], &["--header-pages", "3"]] {
        let scene = Scene::new(options);
        for mode in [&[][..], &["--quick"], &["--no-keys"], &["--jobs", "7"]] {
            let report = Report::of(&scene.volume, &scene.volume.cipher, mode);
            report.assert(0, &[]);
            let counts = ["files", "directories", "symlinks", "overflow_objects", "moved_directories"];
            assert_eq!(counts.map(|name| report.count(name)), [10, 6, 2, 1, 0], "{:#}", report.value);
            let cmks = report.value["counts"]["cmks"].as_array().unwrap();
            assert_eq!((cmks.len(), cmks[0]["missing"].as_u64()), (1, Some(0)));
        }
    }
}

#[test]
fn the_human_report_says_what_where_and_what_to_do() {
    needs!(have_mount);
    let scene = Scene::new(&[]);
    let output = scene.volume.run(["check".as_ref(), scene.volume.cipher.as_os_str()]);
    assert!(output.status.success() && text(&output).contains("no damage"), "{}", text(&output));
    // No bar where there is no terminal.
    assert!(output.stderr.is_empty(), "{}", text(&output));
    flip(&scene.at(&scene.volume.cipher, "victim"), block(7) + 2000);
    let output = scene.volume.run(["check".as_ref(), scene.volume.cipher.as_os_str()]);
    let shown = text(&output);
    assert_eq!(output.status.code(), Some(7), "{shown}");
    for part in ["DAMAGE: code=block-auth /victim block 7\n", "below:   tree/", "do:      restore", "1 DAMAGED"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

#[test]
fn tampered_blocks_and_lengths() {
    needs!(have_mount);
    let scene = Scene::new(&[]);
    let victim = |case: &Path| scene.at(case, "victim");
    let last = BLOCKS - 1;
    scene.expect(7, &[blocks("block-auth", "/victim", 7, 7)], |c| flip(&victim(c), block(7) + 2000));
    for byte in [0, 12, 28, 32, 34, 36, 47] {
        scene.expect(7, &[blocks("block-auth", "/victim", 3, 3)], |c| flip(&victim(c), block(3) + byte));
    }
    let two = [blocks("block-auth", "/victim", 2, 2), blocks("block-auth", "/victim", 9, 9)];
    scene.expect(7, &two, |c| {
        let (a, b) = (page(&victim(c), block(2)), page(&victim(c), block(9)));
        put(&victim(c), block(2), &b);
        put(&victim(c), block(9), &a);
    });
    scene.expect(7, &[blocks("block-auth", "/victim", 5, 6)], |c| {
        put(&victim(c), block(5), &page(&scene.at(c, "other"), block(5)));
        put(&victim(c), block(6), &page(&scene.at(c, "other"), block(6)));
    });
    scene.expect(7, &[blocks("hole-below-floor", "/victim", 4, 5)], |c| {
        put(&victim(c), block(4), &[0; 2 * PAGE as usize]);
    });
    // A file with holes does not resist zeroing.
    scene.expect(0, &[], |c| put(&scene.at(c, "sparse"), block((1 << 30) / PLAIN + 5), &[0; PAGE as usize]));
    let cut = |len: u64| move |file: PathBuf| read_write(&file).set_len(len).unwrap();
    scene.expect(7, &[found("truncated-below-floor", "/victim")], |c| cut(block(5) + 100)(victim(c)));
    let growing = [found("truncated-below-floor", "/victim"), found("size-not-settled", "/victim")];
    scene.expect(7, &growing, |c| cut(block(5))(victim(c)));
    scene.expect(7, &[found("impossible-length", "/victim")], |c| cut(block(5) + 4090)(victim(c)));
    scene.expect(7, &[found("impossible-length", "/victim")], |c| cut(DATA_START + 7)(victim(c)));
    // A tail that is gone: the size is in the last block, where nobody can forge it.
    scene.expect(0, &[found("size-not-settled", "/victim")], |c| cut(block(BLOCKS))(victim(c)));
    let forged = [blocks("block-auth", "/victim", last, last), found("size-not-settled", "/victim")];
    scene.expect(7, &forged, |c| {
        cut(block(BLOCKS))(victim(c));
        flip(&victim(c), block(last) + 32);
    });
    // Extended: zeros above the floor, and no work in proportion.
    scene.expect(0, &[], |c| cut(block(1 << 28) + 1)(victim(c)));
    scene.expect(0, &[], |c| cut(0)(scene.at(c, "other")));
    // With the header goes the key of its attributes.
    scene.expect(7, &[found("xattr-auth", "/victim")], |c| cut(0)(victim(c)));
}

#[test]
fn a_quick_check_reads_headers_and_last_blocks() {
    needs!(have_mount);
    let scene = Scene::new(&[]);
    let case = scene.case();
    flip(&scene.at(&case, "victim"), block(7) + 2000);
    Report::of(&scene.volume, &case, &["--quick"]).assert(0, &[]);
    flip(&scene.at(&case, "victim"), block(BLOCKS - 1) + 2000);
    let want = [blocks("block-auth", "/victim", BLOCKS - 1, BLOCKS - 1)];
    Report::of(&scene.volume, &case, &["--quick"]).assert(7, &want);
}

#[test]
fn tampered_headers() {
    needs!(have_mount);
    let scene = Scene::new(&[]);
    let victim = |case: &Path| scene.at(case, "victim");
    let header = [found("header", "/victim")];
    scene.expect(7, &header, |c| flip(&victim(c), 100));
    // Of a file with two names, both: each is moved away by itself.
    let names = [found("header", "/other"), found("header", "/other name")];
    scene.expect(7, &names, |c| flip(&scene.at(c, "other"), 100));
    // Suite, floor, reserved bytes, flags: with the right checksum.
    for offset in [10, 32, 20, 16] {
        scene.expect(7, &header, |c| {
            flip(&victim(c), offset);
            mend_checksum(&victim(c));
        });
    }
    scene.expect(7, &[found("header-missing", "/victim")], |c| put(&victim(c), 0, &[0; PAGE as usize]));
    scene.expect(7, &[found("wrapped-key", "/victim")], |c| {
        // The body of the wrapped DEK, from another file.
        let body = page(&scene.at(c, "other"), 0)[196..288].to_vec();
        put(&victim(c), 196, &body);
        mend_checksum(&victim(c));
    });
    // Blocks under another file's header, and its attribute.
    let swapped = [blocks("block-auth", "/victim", 0, BLOCKS - 1), found("xattr-auth", "/victim")];
    scene.expect(7, &swapped, |c| put(&victim(c), 0, &page(&scene.at(c, "other"), 0)));
    // Garbage in slot B, which was never written, is worth a warning.
    scene.expect(0, &[found("header-slot", "/victim")], |c| put(&victim(c), PAGE, &[7; PAGE as usize]));
    // A file of another volume under the same CMK.
    let twin = Volume::unmade(None);
    let cipher = twin.scratch().join("twin");
    scene.volume.ok(["init".as_ref(), "--cmk".as_ref(), scene.volume.cmk().as_ref(), cipher.as_os_str()]);
    let mount = scene.volume.mount_other(&cipher, &twin.mountpoint);
    fs::write(mount.join("forged"), b"planted").unwrap();
    let ino = fs::metadata(mount.join("forged")).unwrap().ino();
    mount.unmount();
    let below = walk(&cipher).into_iter().find(|p| fs::symlink_metadata(p).unwrap().ino() == ino).unwrap();
    scene.expect(7, &header, |c| {
        fs::copy(&below, victim(c)).unwrap();
    });
}

/// Any bytes in any place: an answer, never a panic, and no code but those of damage.
#[test]
fn random_bytes_anywhere_are_survived() {
    needs!(have_mount);
    let scene = Scene::new(&[]);
    let mut random = Random::new(77);
    for _ in 0..12 {
        let case = scene.case();
        let files: Vec<PathBuf> = walk(&case.join("tree"))
            .into_iter()
            .filter(|p| fs::symlink_metadata(p).unwrap().is_file() && fs::metadata(p).unwrap().len() > 0)
            .collect();
        for _ in 0..20 {
            let path = random.pick(&files).clone();
            // Mostly in headers, with a checksum that holds.
            put(&path, random.below(4000), &random.next().to_le_bytes()[..1 + random.below(7) as usize]);
            if random.below(4) > 0 {
                mend_checksum(&path);
            }
        }
        for mode in [&[][..], &["--no-keys"], &["--repair"]] {
            let report = Report::of(&scene.volume, &case, mode);
            assert!([0, 4, 7].contains(&report.exit), "{:#}", report.value);
        }
        fs::remove_dir_all(case).unwrap();
    }
}

#[test]
fn tampered_directories_and_names() {
    needs!(have_mount);
    let scene = Scene::new(&[]);
    let at = |case: &Path, name: &str| scene.at(case, name);
    let moved = |c: &Path| {
        let (from, to) = (at(c, "d/inside"), at(c, "e"));
        fs::rename(&from, to.join(from.file_name().unwrap())).unwrap();
    };
    scene.expect(7, &[nameless("name-auth")], moved);
    let id = |case: &Path, name: &str| at(case, name).join(".envelopefs.dir");
    scene.expect(7, &[found("dir-id", "/d")], |c| fs::remove_file(id(c, "d")).unwrap());
    scene.expect(7, &[found("dir-id", "/d")], |c| {
        fs::remove_file(id(c, "d")).unwrap();
        fs::write(id(c, "d"), b"no link").unwrap();
    });
    // The names do not open under the other's id; what is there is still read.
    scene.expect(7, &[nameless("name-auth"), nameless("name-auth")], |c| {
        let (d, e) = (fs::read_link(id(c, "d")).unwrap(), fs::read_link(id(c, "e")).unwrap());
        for (name, target) in [("d", e), ("e", d)] {
            fs::remove_file(id(c, name)).unwrap();
            symlink(target, id(c, name)).unwrap();
        }
    });
    // With a subdirectory as witness it is the record that is wrong.
    scene.expect(7, &[found("dir-id", "/up")], |c| {
        fs::remove_file(id(c, "up")).unwrap();
        symlink(fs::read_link(id(c, "d")).unwrap(), id(c, "up")).unwrap();
    });
    scene.expect(7, &[found("dir-id", "/")], |c| fs::remove_file(c.join("tree/.envelopefs.dir")).unwrap());
    // An id in a second, empty directory: corpus 22. Which of the two comes second, their ciphertext names decide.
    let (d, e) = (at(&scene.volume.cipher, "d"), at(&scene.volume.cipher, "e"));
    scene.expect(0, &[found("dir-id-twice", if d < e { "/e" } else { "/d" })], |c| {
        fs::remove_file(id(c, "e")).unwrap();
        fs::remove_file(at(c, "e/inside")).unwrap();
        symlink(fs::read_link(id(c, "d")).unwrap(), id(c, "e")).unwrap();
    });
    let companion = |c: &Path| PathBuf::from(format!("{}.name", at(c, LONG).display()));
    scene.expect(7, &[nameless("companion")], |c| fs::remove_file(companion(c)).unwrap());
    scene.expect(0, &[nameless("companion-orphan")], |c| fs::remove_file(at(c, LONG)).unwrap());
    scene.expect(7, &[nameless("companion")], |c| {
        fs::remove_file(companion(c)).unwrap();
        mkfifoat(CWD, companion(c), Mode::RUSR).unwrap();
    });
    scene.expect(7, &[nameless("name-auth")], |c| fs::write(c.join("tree/notes.txt"), b"stray").unwrap());
    // A rename through a mount is no finding, only a number.
    let case = scene.case();
    let mount = scene.volume.mount_other(&case, &scene.volume.mountpoint);
    fs::rename(mount.join("up/sub"), mount.join("e/sub")).unwrap();
    mount.unmount();
    let report = Report::of(&scene.volume, &case, &[]);
    report.assert(0, &[]);
    assert_eq!(report.count("moved_directories"), 1);
}

#[test]
fn objects_of_other_kinds() {
    needs!(have_mount);
    let scene = Scene::new(&[]);
    let replace = |c: &Path, name: &str, by: &dyn Fn(&Path)| {
        let path = scene.at(c, name);
        fs::remove_file(&path).unwrap();
        by(&path);
    };
    let fifo = |path: &Path| mkfifoat(CWD, path, Mode::RUSR).unwrap();
    scene.expect(0, &[found("special", "/victim")], |c| replace(c, "victim", &fifo));
    scene.expect(7, &[found("symlink-auth", "/victim")], |c| {
        replace(c, "victim", &|p| symlink("/etc/passwd", p).unwrap());
    });
    scene.expect(7, &[found("dir-id", "/victim")], |c| replace(c, "victim", &|p| fs::create_dir(p).unwrap()));
    let overflow = |c: &Path| walk(&c.join("overflow")).remove(0);
    scene.expect(7, &[found("overflow-missing", "/long link")], |c| fs::remove_file(overflow(c)).unwrap());
    scene.expect(7, &[found("symlink-auth", "/long link")], |c| flip(&overflow(c), 100));
    let wrong = [nameless("wrong-kind"), found("overflow-missing", "/long link")];
    scene.expect(7, &wrong, |c| {
        let object = overflow(c);
        fs::remove_file(&object).unwrap();
        fifo(&object);
    });
    scene.expect(0, &[nameless("overflow-orphan")], |c| fs::remove_file(scene.at(c, "long link")).unwrap());
    scene.expect(7, &[nameless("layout"), found("overflow-missing", "/long link")], |c| {
        fs::remove_dir_all(c.join("overflow")).unwrap();
    });
    scene.expect(0, &[nameless("foreign"), nameless("foreign")], |c| {
        fs::write(c.join("stray"), b"x").unwrap();
        fs::write(c.join("overflow/stray"), b"x").unwrap();
    });
    scene.expect(7, &[nameless("layout")], |c| {
        fs::remove_dir_all(c.join("tree")).unwrap();
        fs::remove_dir_all(c.join("overflow")).unwrap();
        fs::create_dir(c.join("overflow")).unwrap();
    });
}

#[test]
fn tampered_attributes() {
    needs!(have_mount);
    let scene = Scene::new(&[]);
    let encoded = |path: &Path| {
        let mut names = xattr_acl::list(path).into_iter().filter(|name| name.starts_with("user.e."));
        names.next().unwrap()
    };
    for name in ["victim", "empty", "d"] {
        scene.expect(7, &[found("xattr-auth", &format!("/{name}"))], |c| {
            let path = scene.at(c, name);
            let attribute = encoded(&path);
            let mut value = xattr_acl::get(&path, &attribute).unwrap();
            value[30] ^= 1;
            xattr_acl::set(&path, &attribute, &value).unwrap();
        });
    }
    scene.expect(7, &[found("xattr-id", "/d")], |c| {
        rustix::fs::removexattr(scene.at(c, "d"), "user.envelopefs.id").unwrap();
    });
    scene.expect(0, &[found("xattr-foreign", "/victim")], |c| {
        xattr_acl::set(&scene.at(c, "victim"), "user.note", b"set below").unwrap();
    });
}

#[test]
fn structure_is_checked_without_keys() {
    needs!(have_mount);
    let scene = Scene::new(&[]);
    let case = scene.case();
    let at = |name: &str| scene.at(&case, name);
    flip(&at("victim"), 100);
    read_write(&at("other")).set_len(block(3) + 4090).unwrap();
    fs::remove_file(at("d").join(".envelopefs.dir")).unwrap();
    fs::remove_file(format!("{}.name", at(LONG).display())).unwrap();
    fs::write(case.join("tree/stray.txt"), b"x").unwrap();
    fs::create_dir(case.join("tree/.envelopefs.tmp.abc")).unwrap();
    fs::write(case.join("envelopefs.toml"), b"nonsense").unwrap();
    // The keys are not needed, and not there.
    let elsewhere = Volume::unmade(None);
    let report = Report::of(&elsewhere, &case, &["--no-keys"]);
    let mut codes: Vec<String> = report.found().into_iter().map(|(code, ..)| code).collect();
    codes.dedup();
    let want = ["companion", "dir-id", "header", "impossible-length", "temporary", "volume-file"];
    assert_eq!(codes, want, "{:#}", report.value);
    assert_eq!(report.exit, 7);
    assert_eq!(report.value["mode"], "no-keys");
    // With the keys, a volume file that is not authentic is not gone on with.
    scene.volume.fails(3, ["check".as_ref(), case.as_os_str()]);
    fs::remove_file(case.join("envelopefs.toml")).unwrap();
    let message = scene.volume.fails(3, ["check".as_ref(), case.as_os_str()]);
    assert!(message.contains("check --no-keys"), "{message}");
    scene.volume.fails(2, ["check".as_ref(), "--no-keys".as_ref(), "--repair".as_ref(), case.as_os_str()]);
    scene.volume.fails(2, ["check".as_ref(), "--yes".as_ref(), case.as_os_str()]);
    let edited = scene.case();
    let toml = fs::read_to_string(edited.join("envelopefs.toml")).unwrap();
    fs::write(edited.join("envelopefs.toml"), toml.replace("plaintext_names = false", "plaintext_names = true"))
        .unwrap();
    scene.volume.fails(3, ["check".as_ref(), edited.as_os_str()]);
}
