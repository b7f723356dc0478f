//! The differential fuzz on a real CIPHERDIR and a real mount: fewer rounds, the whole way through kernel and daemon.

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use envelopefs::fs::ROOT;
use envelopefs::keys::CmkProvider;
use envelopefs::keys::keyring::KeyPolicy;
use envelopefs::store::Kind;
use envelopefs::store::disk::DiskStore;

use crate::attack::Attack;
use crate::common::*;
use crate::forge::Insider;
use crate::library::{seed, setting};
use crate::needs;
use crate::oracle::{Errno, Oracle, Seen, View, Written};
use crate::scene::direct;
use crate::world::{Host, Model, build};

const ROUNDS: u64 = 12;

/// A mount, asked by system calls.
struct MountView(PathBuf);

fn errno_of(error: std::io::Error) -> Errno {
    error.raw_os_error().expect("an error without errno")
}

impl View for MountView {
    type Node = PathBuf;
    fn root(&self) -> PathBuf {
        self.0.clone()
    }
    fn list(&self, dir: &PathBuf) -> Result<Vec<Vec<u8>>, Errno> {
        let entries = fs::read_dir(dir).map_err(errno_of)?;
        entries.map(|entry| entry.map(|e| e.file_name().into_vec()).map_err(errno_of)).collect()
    }
    fn lookup(&self, dir: &PathBuf, name: &[u8]) -> Result<Seen<PathBuf>, Errno> {
        let node = dir.join(std::ffi::OsStr::from_bytes(name));
        let found = fs::symlink_metadata(&node).map_err(errno_of)?;
        let kind = match found.file_type() {
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_file() => Kind::File,
            kind if kind.is_symlink() => Kind::Symlink,
            kind if kind.is_fifo() => Kind::Fifo,
            _ => Kind::CharDevice,
        };
        Ok(Seen { node, ino: found.ino(), kind, size: found.len() })
    }
    fn read(&self, path: &PathBuf, pieces: &[(u64, usize)]) -> Result<Vec<Result<Vec<u8>, Errno>>, Errno> {
        // Past the page cache: a page there spans two blocks.
        let file = direct(path).map_err(errno_of)?;
        let read = |(offset, len): &(u64, usize)| {
            let mut bytes = vec![0xEE; *len];
            let n = file.read_at(&mut bytes, *offset).map_err(errno_of)?;
            bytes.truncate(n);
            Ok(bytes)
        };
        Ok(pieces.iter().map(read).collect())
    }
    fn readlink(&self, path: &PathBuf) -> Result<Vec<u8>, Errno> {
        Ok(fs::read_link(path).map_err(errno_of)?.into_os_string().into_vec())
    }
    fn xattr(&self, path: &PathBuf, name: &str) -> Result<Vec<u8>, Errno> {
        let mut value = vec![0; 64 << 10];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).map_err(|e| e.raw_os_error())?;
        value.truncate(len);
        Ok(value)
    }
    fn xattrs(&self, path: &PathBuf) -> Result<Vec<String>, Errno> {
        let mut names = vec![0; 64 << 10];
        let len = rustix::fs::llistxattr(path, &mut names[..]).map_err(|e| e.raw_os_error())?;
        let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
    }
}

fn stores(cipher: &Path) -> (DiskStore, DiskStore) {
    let open = |name: &str| DiskStore::open(cipher.join(name)).unwrap();
    (open("tree"), open("overflow"))
}

/// The model for a copy of the CIPHERDIR: the same objects under other inode numbers.
fn of_copy(model: &Model, original: &Path, copy: &Path) -> Model {
    let mut by_ino = HashMap::from([(ROOT, 0)]);
    for path in walk(original) {
        let there = copy.join(path.strip_prefix(original).unwrap());
        let ino = |path: &Path| fs::symlink_metadata(path).unwrap().ino();
        if let Some(index) = model.by_ino.get(&ino(&path)) {
            by_ino.insert(ino(&there), *index);
        }
    }
    Model { by_ino, ..model.clone() }
}

#[test]
fn random_tampering_below_a_mount() {
    needs!(have_mount);
    let (seed, rounds) = (seed(), setting("ENVELOPEFS_TAMPER_MOUNT_ROUNDS", ROUNDS));
    println!("ENVELOPEFS_TAMPER_SEED={seed} ENVELOPEFS_TAMPER_MOUNT_ROUNDS={rounds}");
    let volume = Volume::new();
    let insider = Insider::of(&volume);
    let (cipher, keyfile) = (volume.cipher.clone(), volume.keyfile.clone());
    let host = Host {
        volume_id: insider.config.volume_id,
        keys: Box::new(move || Insider::at(&cipher, &keyfile).keys),
        own: vec![insider.cmk.clone() as std::sync::Arc<dyn CmkProvider>],
        further: None,
        policy: KeyPolicy {
            mode: insider.config.key_mode,
            branch_max_age: insider.config.branch_max_age,
            branch_max_files: insider.config.branch_max_files,
        },
        branch: insider.config.branch.clone(),
        geometry: insider.geometry(),
    };
    let model = build(&host, &|| stores(&volume.cipher));
    let (mut served, mut refused) = (0, 0);
    for round in 0..rounds {
        let mut random = Random::new(seed.wrapping_add(round.wrapping_mul(0x1234_5678_9abc_def1)));
        let copy = volume.scratch().join(format!("copy{round}"));
        tool("cp", &["-a".as_ref(), "--sparse=always".as_ref(), volume.cipher.as_os_str(), copy.as_os_str()]);
        let model = of_copy(&model, &volume.cipher, &copy);
        let (tree, overflow) = stores(&copy);
        let mut attack = Attack::on(&tree, &overflow, &model, host.geometry);
        // The first round is not tampered with.
        for _ in 0..random.below(20) * round.min(1) {
            let _ = attack.step(random.next());
        }
        let touched = attack.touched;
        if touched.directories.contains(&ROOT) && !copy.join("tree/.envelopefs.dir").is_symlink() {
            // Not mounted without the root's id: `a_root_without_its_id_is_not_mounted`.
            continue;
        }
        let mountpoint = volume.scratch().join(format!("mnt-of-{round}"));
        fs::create_dir(&mountpoint).unwrap();
        let root_id = fs::read_link(copy.join("tree/.envelopefs.dir")).ok();
        if root_id != fs::read_link(volume.cipher.join("tree/.envelopefs.dir")).ok() {
            continue;
        }
        let mount = volume.mount_other(&copy, &mountpoint);
        let written = Written::default();
        let mut oracle = Oracle::new(&model, &touched, &written);
        oracle.keeps_numbers = false;
        if let Err(e) = oracle.check(&MountView(mount.path.clone())) {
            panic!("ENVELOPEFS_TAMPER_SEED={seed}, round {round}: {e}\n{:#?}\n{}", touched.told, mount.log());
        }
        (served, refused) = (served + oracle.served, refused + oracle.refused);
        let memory = crate::corpus_headers::resident_peak(&mount);
        assert!(memory < 256 << 10, "{memory} KiB");
        mount.unmount();
        fs::remove_dir_all(&copy).unwrap();
    }
    println!("{rounds} tampered volumes: {served} answers were true, {refused} refused");
    assert!(served > 0 && (rounds < 5 || refused > 0), "the oracle looks at nothing");
}
