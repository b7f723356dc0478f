//! Damaged volumes frozen with their expected answers, in tests/hostile: later versions must refuse what this one refused.
//!
//! tests/hostile/vN holds `volume.tar.gz` (the CIPHERDIR `cipher`, further volume files beside it, and `cmk.json`: a key made
//! for these tests alone, which protects nothing) and `manifest.tsv`: case, path, expected answer, word of the log.
//! Both are made anew by `ENVELOPEFS_HOSTILE_OUT=tests/hostile/vN cargo test --test tamper frozen`; without it the same test
//! makes them in a scratch directory and checks them like the frozen ones.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use envelopefs::format::header::FLAG_SEALED;

use crate::common::*;
use crate::forge::{Insider, TLV_CMK_SLOT, TLV_WRAPPED_DEK, fix_crc, tlv};
use crate::needs;
use crate::scene::*;

/// Content of every file: its case number gives the bytes, three blocks less some.
const LEN: usize = 3 * PLAIN as usize - 1000;

fn content(name: &str) -> Vec<u8> {
    pattern(name.bytes().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte))), LEN)
}

/// What a mount says of one path: `blocks:` and a letter a block (`=` true, `0` zeros, `E` EIO), `open:` and an errno,
/// `absent`, `list:`, `readlink:`, or `is:` and whose content it has.
fn answer(mount: &Mount, path: &str, files: &[String]) -> String {
    let full = mount.join(path);
    let Ok(found) = fs::symlink_metadata(&full) else { return "absent".into() };
    let word = |code: i32| match code {
        0 => "ok".to_owned(),
        libc::EIO => "EIO".into(),
        libc::ENOKEY => "ENOKEY".into(),
        other => format!("errno {other}"),
    };
    if found.is_dir() {
        let listed = fs::read_dir(&full).and_then(|all| all.collect::<Result<Vec<_>, _>>());
        return match listed {
            Ok(entries) => format!("list:{}", entries.len()),
            Err(e) => format!("list:{}", word(errno::<(), _>(Err(e)))),
        };
    }
    if found.is_symlink() {
        return format!("readlink:{}", word(errno(fs::read_link(&full))));
    }
    if !found.is_file() {
        return "another kind".into();
    }
    let file = match direct(&full) {
        Ok(file) => file,
        Err(e) => return format!("open:{}", word(errno::<(), _>(Err(e)))),
    };
    let size = found.len();
    let read = |offset: u64, len: usize| {
        let mut bytes = vec![0; len];
        file.read_at(&mut bytes, offset).map(|n| bytes[..n].to_vec())
    };
    if size == 0 {
        return "is:empty".into();
    }
    let own = content(path);
    if let Ok(all) = read(0, LEN)
        && all != own
        && let Some(name) = files.iter().find(|name| content(name) == all)
    {
        return format!("is:{name}");
    }
    let blocks = (0..size.div_ceil(PLAIN).min(6)).map(|index| {
        let start = index * PLAIN;
        let want = own.get(start as usize..).map_or(&[][..], |rest| &rest[..rest.len().min(PLAIN as usize)]);
        match read(start, PLAIN.min(size - start) as usize) {
            Ok(got) if !want.is_empty() && got.starts_with(&want[..want.len().min(got.len())]) => '=',
            Ok(got) if got.iter().all(|byte| *byte == 0) => '0',
            Ok(_) => '!',
            Err(e) if e.raw_os_error() == Some(libc::EIO) => 'E',
            Err(_) => '?',
        }
    });
    format!("blocks:{}", blocks.collect::<String>())
}

/// One damaged path, or a volume file to put in place of the good one (`file` named).
struct Row {
    case: String,
    path: String,
    answer: String,
    code: String,
}

fn rows(manifest: &str) -> Vec<Row> {
    let lines = manifest.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            let [case, path, answer, code] = fields[..] else { panic!("manifest: {line}") };
            Row { case: case.into(), path: path.into(), answer: answer.into(), code: code.into() }
        })
        .collect()
}

/// Unpacks into the volume's places, mounts, and holds every answer to the manifest.
fn check(directory: &Path) {
    let volume = Volume::unmade(None);
    let unpacked = volume.scratch().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    let archive = directory.join("volume.tar.gz");
    tool("tar", &["--xattrs", "--no-same-owner", "-xpzf", archive.to_str().unwrap(), "-C", unpacked.to_str().unwrap()]);
    fs::rename(unpacked.join("cipher"), &volume.cipher).unwrap();
    fs::copy(unpacked.join("cmk.json"), &volume.keyfile).unwrap();
    fs::set_permissions(&volume.keyfile, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&volume.cipher, fs::Permissions::from_mode(0o700)).unwrap();
    let rows = rows(&fs::read_to_string(directory.join("manifest.tsv")).unwrap());
    assert!(rows.len() > 30, "{} rows", rows.len());
    let files: Vec<String> = rows.iter().map(|row| row.path.clone()).collect();
    // The first mount tells this host whom to trust, as an operator would.
    let uri = volume.cmk();
    let mut command = volume.command(["mount", "--foreground", "--cmk", &uri]);
    command.args(["-o", if is_root() { "ro,allow_other" } else { "ro" }]);
    command.args([volume.cipher.as_os_str(), volume.mountpoint.as_os_str()]);
    let mount = Mount::wait_until_up(&volume, &volume.mountpoint, command);
    let mut wrong = Vec::new();
    for row in rows.iter().filter(|row| !row.path.starts_with("../")) {
        let got = answer(&mount, &row.path, &files);
        // Several answers may be right: `a|b`.
        if !row.answer.split('|').any(|expected| expected == got) {
            wrong.push(format!("case {}: {}: {got}, want {}", row.case, row.path, row.answer));
        }
    }
    let log = mount.log();
    for row in rows.iter().filter(|row| !row.path.starts_with("../") && row.code != "-") {
        if !row.code.split('|').any(|code| log.contains(&format!("code={code} path=tree"))) {
            wrong.push(format!("case {}: {}: the log has no code={}", row.case, row.path, row.code));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{log}");
    mount.unmount();
    let good = fs::read(volume.cipher.join("envelopefs.toml")).unwrap();
    for row in rows.iter().filter(|row| row.path.starts_with("../")) {
        fs::copy(unpacked.join(&row.path[3..]), volume.cipher.join("envelopefs.toml")).unwrap();
        let message = volume.fails(3, ["mount".as_ref(), volume.cipher.as_os_str(), volume.mountpoint.as_os_str()]);
        assert!(message.contains(&row.answer), "case {}: {message}", row.case);
    }
    fs::write(volume.cipher.join("envelopefs.toml"), good).unwrap();
    // Everything broken can be removed.
    let mount = volume.mount();
    for row in rows.iter().filter(|row| !row.path.starts_with("../") && !row.path.contains('/')) {
        let path = mount.join(&row.path);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => drop(fs::remove_dir_all(path)),
            Ok(_) => fs::remove_file(&path).unwrap_or_else(|e| panic!("unlinking {}: {e}", row.path)),
            Err(_) => {}
        }
    }
    mount.unmount();
}

#[test]
fn frozen_damage_is_answered_as_recorded() {
    needs!(have_mount);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile");
    let mut versions: Vec<PathBuf> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    versions.retain(|path| path.is_dir());
    versions.sort();
    assert!(!versions.is_empty());
    for version in versions {
        println!("{}", version.display());
        check(&version);
    }
}

/// Makes the damaged volume and its manifest.
#[test]
fn frozen_damage_can_be_made_anew() {
    needs!(have_mount);
    let scratch = scratch();
    let out = std::env::var_os("ENVELOPEFS_HOSTILE_OUT").map(PathBuf::from);
    let directory = out.unwrap_or_else(|| scratch.path().join("v"));
    fs::create_dir_all(&directory).unwrap();
    make(&directory);
    check(&directory);
}

struct Maker {
    volume: Volume,
    manifest: String,
    places: std::collections::HashMap<String, PathBuf>,
}

const FILES: [&str; 37] = [
    "01-flip",
    "02-nonce",
    "02-tag",
    "02-salt",
    "02-valid",
    "02-flags",
    "02-reserved",
    "03-swap",
    "04-foreign",
    "05-older",
    "06-below",
    "06-above",
    "06-holes",
    "07-cut",
    "08-long-tail",
    "08-no-block",
    "09-quiet",
    "09-forged",
    "10-extended",
    "10-sealed",
    "11-flipped",
    "11-zeros",
    "12-older",
    "13-a",
    "13-b",
    "14-dek",
    "14-blob",
    "16-forged",
    "17-suite",
    "17-version",
    "17-floor",
    "18-critical",
    "18-length",
    "19-moved",
    "21-a",
    "21-b",
    "21-emptied",
];

impl Maker {
    fn at(&self, name: &str) -> PathBuf {
        self.places[name].clone()
    }
    fn row(&mut self, case: u32, path: &str, answer: &str, code: &str) {
        self.manifest.push_str(&format!("{case}\t{path}\t{answer}\t{code}\n"));
    }
    fn header(&self, name: &str) -> Vec<u8> {
        page(&self.at(name), 0).to_vec()
    }
    /// A changed header, with a correct checksum.
    fn set_header(&self, name: &str, mut bytes: Vec<u8>) {
        fix_crc(&mut bytes);
        put(&self.at(name), 0, &bytes);
    }
}

fn block(index: u64) -> u64 {
    DATA_START + index * PAGE
}

fn make(directory: &Path) {
    let volume = Volume::new();
    let mount = volume.mount();
    let mut places = std::collections::HashMap::new();
    let mut inos = Vec::new();
    for name in FILES {
        let path = mount.join(name);
        fs::write(&path, content(name)).unwrap();
        if name == "06-holes" {
            use rustix::fs::FallocateFlags;
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(read_write(&path), flags, PLAIN, PLAIN).unwrap();
        }
        inos.push((name.to_owned(), fs::metadata(path).unwrap().ino()));
    }
    for name in
        ["19-no-id", "19-forged-id", "19-swapped-a", "19-swapped-b", "20-directory", "22-copied-id", "22-original"]
    {
        fs::create_dir(mount.join(name)).unwrap();
        fs::write(mount.join(name).join("inside"), b"inside").unwrap();
        inos.push((name.to_owned(), fs::metadata(mount.join(name)).unwrap().ino()));
    }
    for name in ["20-fifo", "20-link", "20-link-target"] {
        symlink(
            format!("target of {name} {}", "t".repeat(if name == "20-link-target" { 2000 } else { 20 })),
            mount.join(name),
        )
        .unwrap();
        inos.push((name.to_owned(), fs::symlink_metadata(mount.join(name)).unwrap().ino()));
    }
    mount.unmount();
    let find = |objects: &[PathBuf], ino: u64| {
        objects.iter().find(|path| fs::symlink_metadata(path).unwrap().ino() == ino).unwrap().clone()
    };
    let objects = walk(&volume.cipher);
    for (name, ino) in inos {
        places.insert(name, find(&objects, ino));
    }
    // Older states to go back to.
    let older_block = page(&places["05-older"], block(1));
    let older_header = page(&places["12-older"], 0);
    let mount = volume.mount();
    read_write(&mount.join("05-older")).write_all_at(&pattern(5, PLAIN as usize), PLAIN).unwrap();
    read_write(&mount.join("12-older")).write_all_at(&pattern(12, 100), LEN as u64).unwrap();
    mount.unmount();
    let mount = volume.mount_with(&["commit=3600"]);
    let file = fs::File::create(mount.join("06-above")).unwrap();
    file.write_all_at(&content("06-above"), 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    mount.kill();
    let insider = Insider::of(&volume);
    let mut m = Maker { volume, manifest: String::new(), places };

    flip(&m.at("01-flip"), block(1) + 2000);
    m.row(1, "01-flip", "blocks:=E=", "block-auth");
    for (name, at) in
        [("02-nonce", 3), ("02-tag", 20), ("02-salt", 29), ("02-valid", 33), ("02-flags", 34), ("02-reserved", 47)]
    {
        flip(&m.at(name), block(0) + at);
        m.row(2, name, "blocks:E==", "block-auth");
    }
    let path = m.at("03-swap");
    let (zero, one) = (page(&path, block(0)), page(&path, block(1)));
    put(&path, block(0), &one);
    put(&path, block(1), &zero);
    m.row(3, "03-swap", "blocks:EE=", "block-auth");
    put(&m.at("04-foreign"), block(1), &page(&m.at("09-quiet"), block(1)));
    m.row(4, "04-foreign", "blocks:=E=", "block-auth");
    put(&m.at("05-older"), block(1), &older_block);
    m.row(5, "05-older", "blocks:===", "-");
    for (name, expected, code) in [
        ("06-below", "blocks:=E=", "hole-below-floor"),
        ("06-above", "blocks:=0=", "-"),
        ("06-holes", "blocks:00=", "-"),
    ] {
        put(&m.at(name), block(if name == "06-holes" { 0 } else { 1 }), &[0; PAGE as usize]);
        m.row(6, name, expected, code);
    }
    set_len(&m.at("07-cut"), block(2));
    m.row(7, "07-cut", "open:EIO", "truncated-below-floor");
    set_len(&m.at("08-long-tail"), block(3) + 4090);
    m.row(8, "08-long-tail", "open:EIO", "impossible-length");
    set_len(&m.at("08-no-block"), block(0) + 10);
    m.row(8, "08-no-block", "is:empty|open:EIO", "impossible-length");
    set_len(&m.at("09-quiet"), block(3));
    m.row(9, "09-quiet", "blocks:===", "-");
    set_len(&m.at("09-forged"), block(3));
    put(&m.at("09-forged"), block(2) + 32, &4000u16.to_le_bytes());
    m.row(9, "09-forged", "open:EIO|blocks:==E", "block-auth");
    set_len(&m.at("10-extended"), block((1 << 40) / PAGE) + 100);
    m.row(10, "10-extended", "blocks:===000", "-");
    let sealed = insider.rewritten(&m.header("10-sealed"), |header| {
        header.flags |= FLAG_SEALED;
        header.sealed_size = LEN as u64;
    });
    put(&m.at("10-sealed"), 0, &sealed);
    set_len(&m.at("10-sealed"), block(1 << 20) + 100);
    m.row(10, "10-sealed", "open:EIO", "sealed-size");
    flip(&m.at("11-flipped"), 70);
    m.row(11, "11-flipped", "open:EIO", "header");
    put(&m.at("11-zeros"), 0, &[0; PAGE as usize]);
    m.row(11, "11-zeros", "open:EIO", "header-missing");
    for slot in [0, PAGE] {
        put(&m.at("12-older"), slot, &older_header);
    }
    m.row(12, "12-older", "blocks:===", "-");
    let (a, b) = (m.header("13-a"), m.header("13-b"));
    put(&m.at("13-a"), 0, &b);
    put(&m.at("13-b"), 0, &a);
    m.row(13, "13-a", "blocks:EEE", "block-auth");
    m.row(13, "13-b", "blocks:EEE", "block-auth");
    let (mut header, donor) = (m.header("14-dek"), m.header("01-flip"));
    header[tlv(&m.header("14-dek"), TLV_WRAPPED_DEK, 0)].copy_from_slice(&donor[tlv(&donor, TLV_WRAPPED_DEK, 0)]);
    m.set_header("14-dek", header);
    m.row(14, "14-dek", "open:ENOKEY", "key");
    // Under a commitment of its own, so that no key that is there already answers for it.
    let mut header = m.header("14-blob");
    let body = tlv(&header, TLV_CMK_SLOT, 0);
    header[body.end - 10] ^= 1;
    header[body.start] ^= 1;
    m.set_header("14-blob", header);
    m.row(14, "14-blob", "open:ENOKEY", "key");
    fs::write(m.at("16-forged"), insider.forged_file(b"never to be served", None)).unwrap();
    m.row(16, "16-forged", "open:EIO", "header");
    for (name, at) in [("17-suite", 10), ("17-version", 8), ("17-floor", 32)] {
        let mut header = m.header(name);
        header[at] ^= 2;
        m.set_header(name, header);
        m.row(17, name, "open:EIO", "header");
    }
    let mut header = m.header("18-critical");
    let end = tlv(&header, TLV_CMK_SLOT, 0).end;
    header[end..end + 4].copy_from_slice(&[9, 0x80, 0, 0]);
    m.set_header("18-critical", header);
    let mut header = m.header("18-length");
    let start = tlv(&header, TLV_CMK_SLOT, 0).start;
    header[start + 33..start + 41].copy_from_slice(&u64::MAX.to_le_bytes());
    m.set_header("18-length", header);
    for name in ["18-critical", "18-length"] {
        m.row(18, name, "open:EIO", "header");
    }
    let raw = m.at("19-moved");
    fs::rename(&raw, m.at("22-original").join(raw.file_name().unwrap())).unwrap();
    m.row(19, "19-moved", "absent", "-");
    m.row(19, "22-original", "list:1", "name-auth");
    let id = |m: &Maker, name: &str| m.at(name).join(".envelopefs.dir");
    let relink = |path: &Path, target: &str| {
        fs::remove_file(path).unwrap();
        symlink(target, path).unwrap();
    };
    fs::remove_file(id(&m, "19-no-id")).unwrap();
    m.row(19, "19-no-id", "list:EIO", "dir-id");
    relink(&id(&m, "19-forged-id"), &"A".repeat(59));
    m.row(19, "19-forged-id", "list:EIO", "dir-id");
    let text = |path: PathBuf| fs::read_link(path).unwrap().to_str().unwrap().to_owned();
    let (a, b) = (text(id(&m, "19-swapped-a")), text(id(&m, "19-swapped-b")));
    relink(&id(&m, "19-swapped-a"), &b);
    relink(&id(&m, "19-swapped-b"), &a);
    m.row(19, "19-swapped-a", "list:0", "name-auth");
    m.row(19, "19-swapped-b", "list:0", "name-auth");
    let place = m.at("20-fifo");
    fs::remove_file(&place).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &place, rustix::fs::Mode::from_raw_mode(0o644)).unwrap();
    m.row(20, "20-fifo", "another kind", "-");
    relink(&m.at("20-link"), "/etc/hostname");
    m.row(20, "20-link", "readlink:EIO", "symlink-auth");
    for object in walk(&m.volume.cipher.join("overflow")) {
        let mut bytes = fs::read(&object).unwrap();
        bytes[100] = if bytes[100] == b'A' { b'B' } else { b'A' };
        fs::write(object, bytes).unwrap();
    }
    m.row(20, "20-link-target", "readlink:EIO", "symlink-auth");
    let place = m.at("20-directory");
    fs::remove_dir_all(&place).unwrap();
    fs::create_dir(&place).unwrap();
    m.row(20, "20-directory", "list:EIO", "dir-id");
    let (a, b, aside) = (m.at("21-a"), m.at("21-b"), m.volume.scratch().join("aside"));
    fs::rename(&a, &aside).unwrap();
    fs::rename(&b, &a).unwrap();
    fs::rename(&aside, &b).unwrap();
    m.row(21, "21-a", "is:21-b", "-");
    m.row(21, "21-b", "is:21-a", "-");
    set_len(&m.at("21-emptied"), 0);
    m.row(21, "21-emptied", "is:empty", "-");
    relink(&id(&m, "22-copied-id"), &text(id(&m, "22-original")));
    m.row(22, "22-copied-id", "list:0", "name-auth");

    let toml = fs::read_to_string(m.volume.cipher.join("envelopefs.toml")).unwrap();
    let edited = toml.replacen("plaintext_names = false", "plaintext_names = true", 1);
    let beside = m.volume.scratch().to_owned();
    fs::write(beside.join("17.toml"), edited).unwrap();
    fs::write(beside.join("23.toml"), insider.forged_volume_file()).unwrap();
    fs::copy(&m.volume.keyfile, beside.join("cmk.json")).unwrap();
    m.row(17, "../17.toml", "volume file", "-");
    m.row(23, "../23.toml", "another volume key than the one recorded", "-");

    let tar = directory.join("volume.tar");
    let mut words =
        vec!["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--format=posix", "-S"];
    words.extend(["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime", "--xattrs", "-cf"]);
    words.extend([tar.to_str().unwrap(), "-C", beside.to_str().unwrap(), "cipher", "17.toml", "23.toml", "cmk.json"]);
    tool("tar", &words);
    tool("gzip", &["-9nf", tar.to_str().unwrap()]);
    let head = "# Damaged objects of volume.tar.gz and what a mount answers. case, path, answer (see tests/tamper/frozen.rs), code in the log.\n";
    fs::write(directory.join("manifest.tsv"), format!("{head}{}", m.manifest)).unwrap();
}
