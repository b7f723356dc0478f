//! Volumes of every shape with known content, on any store: what the differential fuzz starts from, and what it may see.
//! Knows the public interface of the library; must not know what is done to the volume later.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use envelopefs::crypto::secret::Secret32;
use envelopefs::crypto::{random, wrap};
use envelopefs::file::FileContext;
use envelopefs::format::VolumeId;
use envelopefs::format::geometry::{Geometry, PLAIN};
use envelopefs::format::header::{FLAG_HOLES_OK, Unverified};
use envelopefs::format::names::NameCodec;
use envelopefs::format::volume::{BranchRecord, KeyMode, VolumeKeys};
use envelopefs::fs::{Caller, Fs, FsConfig, FsError, Ino, OpenMode, ROOT};
use envelopefs::keys::guard::{Guard, OutagePolicy};
use envelopefs::keys::keyring::{KeyPolicy, Keyring};
use envelopefs::keys::{CmkInfo, CmkProvider, CmkState, EncryptionContext, KeyError, KeyRef};
use envelopefs::store::{Access, BackingFile, Kind, Place, Store};

use crate::common::pattern;

pub const READ: OpenMode = OpenMode { read: true, write: false, truncate: false, drop_privileges: false };
pub const WRITE: OpenMode = OpenMode { read: true, write: true, truncate: false, drop_privileges: false };
pub const EMPTY: OpenMode = OpenMode { read: true, write: true, truncate: true, drop_privileges: false };

/// The identity of the test process, so that the tests run for every user.
pub fn caller() -> Caller {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Caller { uid, gid, pid: std::process::id(), umask: 0o022 }
}

/// A CMK in this process that counts how often it is asked.
pub struct CountingCmk {
    key_ref: KeyRef,
    secret: Secret32,
    pub calls: AtomicU64,
}

impl CountingCmk {
    pub fn new(name: &str) -> Arc<Self> {
        let key_ref = KeyRef { provider: "test".into(), key: name.into() };
        Arc::new(Self { key_ref, secret: Secret32::random(), calls: AtomicU64::new(0) })
    }
    fn asked(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }
}

impl CmkProvider for CountingCmk {
    fn key_ref(&self) -> &KeyRef {
        &self.key_ref
    }
    fn is_local(&self) -> bool {
        true
    }
    fn generate(&self, context: &EncryptionContext) -> Result<(Secret32, Vec<u8>), KeyError> {
        let key = Secret32::random();
        let blob = self.wrap(&key, context)?;
        Ok((key, blob))
    }
    fn wrap(&self, key: &Secret32, context: &EncryptionContext) -> Result<Vec<u8>, KeyError> {
        self.asked();
        Ok(wrap::wrap_key(&self.secret, &random::array(), &context.canonical_bytes(), key).to_vec())
    }
    fn unwrap(&self, blob: &[u8], context: &EncryptionContext) -> Result<Secret32, KeyError> {
        self.asked();
        wrap::unwrap_key(&self.secret, &context.canonical_bytes(), blob)
            .map_err(|e| KeyError::BadBlob { key: self.key_ref.to_string(), reason: e.to_string() })
    }
    fn describe(&self) -> Result<CmkInfo, KeyError> {
        Ok(CmkInfo { key: self.key_ref.clone(), state: CmkState::Enabled, description: String::new(), created: None })
    }
}

/// What a host knows of one volume: enough to mount it again and again.
pub struct Host {
    pub volume_id: VolumeId,
    pub keys: Box<dyn Fn() -> VolumeKeys + Send + Sync>,
    pub own: Vec<Arc<dyn CmkProvider>>,
    /// For a directory.
    pub further: Option<Arc<dyn CmkProvider>>,
    pub policy: KeyPolicy,
    pub branch: Option<BranchRecord>,
    pub geometry: Geometry,
}

impl Host {
    /// Two CMKs for the volume and a third for a directory.
    pub fn new(mode: KeyMode, header_pages: u32) -> Self {
        let (volume_id, key): (VolumeId, _) = (random::array(), Secret32::random());
        Self {
            volume_id,
            keys: Box::new(move || VolumeKeys::derive(&volume_id, &key)),
            own: vec![CountingCmk::new("one"), CountingCmk::new("two")],
            further: Some(CountingCmk::new("three")),
            policy: KeyPolicy { mode, branch_max_age: 1 << 30, branch_max_files: 1 << 20 },
            branch: None,
            geometry: Geometry { header_pages },
        }
    }

    /// All keys, in a keyring of its own.
    pub fn files(&self) -> (FileContext, NameCodec) {
        let keys = (self.keys)();
        let guard = |cmk: &Arc<dyn CmkProvider>| Guard::new(cmk.clone(), OutagePolicy::default());
        let origin = Some(keys.origin.duplicate());
        let own = self.own.iter().map(guard).collect();
        let keyring = Keyring::new(self.volume_id, own, self.policy, origin, self.branch.clone());
        if let Some(further) = &self.further {
            keyring.add_cmk(guard(further));
        }
        (FileContext { keyring, geometry: self.geometry }, NameCodec::encrypted(&keys.names))
    }

    pub fn mount<S: Store>(&self, tree: S, overflow: S) -> Result<Fs<S>, FsError> {
        let (files, names) = self.files();
        let config = FsConfig {
            files: Arc::new(files),
            names,
            keys: (self.keys)(),
            read_only: false,
            exclusive: true,
            noatime: true,
            descriptor_budget: 16,
        };
        Fs::new(tree, overflow, config)
    }
}

/// What one authentic header says of holes.
#[derive(Debug, Clone, Copy)]
pub struct Floor {
    pub floor: u64,
    pub holes: bool,
}

/// One object of the volume, and everything authentic that was ever stored for it.
#[derive(Debug, Clone)]
pub struct Object {
    pub path: String,
    pub kind: Kind,
    /// Contents, or targets; the present one last.
    pub versions: Vec<Vec<u8>>,
    pub floors: Vec<Floor>,
    /// The backing file's bytes at an earlier time.
    pub older: Vec<u8>,
    /// Values by name, the present one last; `None`: removed.
    pub xattrs: HashMap<String, Vec<Option<Vec<u8>>>>,
    /// Of a directory: names and the objects behind them.
    pub entries: HashMap<Vec<u8>, usize>,
    pub growing: bool,
}

impl Object {
    pub fn content(&self) -> &[u8] {
        self.versions.last().map_or(&[], Vec::as_slice)
    }
    /// Every authentic plaintext of a block, padded with zeros.
    pub fn blocks(&self, index: u64) -> impl Iterator<Item = Vec<u8>> {
        let start = index as usize * PLAIN;
        self.versions.iter().filter(move |version| version.len() > start).map(move |version| {
            let mut block = version[start..version.len().min(start + PLAIN)].to_vec();
            block.resize(PLAIN, 0);
            block
        })
    }
    pub fn may_be_zero(&self, index: u64) -> bool {
        self.floors.iter().any(|f| f.holes || index * PLAIN as u64 >= f.floor)
    }
    pub fn least_floor(&self) -> u64 {
        self.floors.iter().map(|f| f.floor).min().unwrap_or(0)
    }
}

/// The whole volume as its owner knows it. Object 0 is the root.
#[derive(Debug, Clone)]
pub struct Model {
    pub objects: Vec<Object>,
    /// Backing inode numbers.
    pub by_ino: HashMap<u64, usize>,
    /// Pages before block 0.
    pub data_pages: u64,
}

/// Builds on a mounted filesystem and keeps the model.
struct Builder<S: Store> {
    fs: Fs<S>,
    model: Model,
    inos: HashMap<String, Ino>,
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

impl<S: Store> Builder<S> {
    fn ino(&mut self, path: &str) -> Ino {
        if path.is_empty() {
            return ROOT;
        }
        if let Some(ino) = self.inos.get(path) {
            return *ino;
        }
        let (parent, name) = split(path);
        let parent = self.ino(parent);
        let ino = self.fs.lookup(parent, name.as_bytes()).expect(path).ino;
        self.inos.insert(path.to_owned(), ino);
        ino
    }
    fn index(&self, path: &str) -> usize {
        self.model.objects.iter().position(|object| object.path == path).expect(path)
    }
    fn object(&mut self, path: &str) -> &mut Object {
        let index = self.index(path);
        &mut self.model.objects[index]
    }
    fn add(&mut self, path: &str, kind: Kind, ino: Ino, versions: Vec<Vec<u8>>) {
        let index = self.model.objects.len();
        self.model.objects.push(Object {
            path: path.to_owned(),
            kind,
            versions,
            floors: Vec::new(),
            older: Vec::new(),
            xattrs: HashMap::new(),
            entries: HashMap::new(),
            growing: false,
        });
        self.model.by_ino.insert(ino, index);
        self.inos.insert(path.to_owned(), ino);
        if index > 0 {
            let (parent, name) = split(path);
            self.object(parent).entries.insert(name.as_bytes().to_vec(), index);
        }
    }
    fn mkdir(&mut self, path: &str) {
        let (parent, name) = split(path);
        let parent = self.ino(parent);
        let attr = self.fs.mkdir(&caller(), parent, name.as_bytes(), 0o755).unwrap();
        self.add(path, Kind::Directory, attr.ino, Vec::new());
    }
    fn create(&mut self, path: &str, content: &[u8]) {
        let (parent, name) = split(path);
        let parent = self.ino(parent);
        let attr = self.fs.create(&caller(), parent, name.as_bytes(), 0o644).unwrap();
        self.fs.write(attr.ino, 0, content).unwrap();
        self.fs.release(attr.ino);
        self.add(path, Kind::File, attr.ino, vec![content.to_vec()]);
    }
    fn symlink(&mut self, path: &str, target: &str) {
        let (parent, name) = split(path);
        let parent = self.ino(parent);
        let attr = self.fs.symlink(&caller(), parent, name.as_bytes(), target.as_bytes()).unwrap();
        self.add(path, Kind::Symlink, attr.ino, vec![target.as_bytes().to_vec()]);
    }
    fn link(&mut self, from: &str, to: &str) {
        let (parent, name) = split(to);
        let (ino, parent, index) = (self.ino(from), self.ino(parent), self.index(from));
        self.fs.link(ino, parent, name.as_bytes()).unwrap();
        self.object(split(to).0).entries.insert(name.as_bytes().to_vec(), index);
    }
    /// Changes the present content, and keeps what it was as an older version.
    fn change(&mut self, path: &str, change: impl FnOnce(&Fs<S>, Ino, &mut Vec<u8>)) {
        let ino = self.ino(path);
        let mut content = self.object(path).content().to_vec();
        self.fs.open(ino, WRITE).unwrap();
        change(&self.fs, ino, &mut content);
        self.fs.release(ino);
        self.object(path).versions.push(content);
    }
    fn write(&mut self, path: &str, offset: usize, data: &[u8]) {
        self.change(path, |fs, ino, content| {
            fs.write(ino, offset as u64, data).unwrap();
            content.resize(content.len().max(offset + data.len()), 0);
            content[offset..offset + data.len()].copy_from_slice(data);
        });
    }
    fn truncate(&mut self, path: &str, size: usize) {
        self.change(path, |fs, ino, content| {
            let size_to = envelopefs::fs::SetAttr { size: Some(size as u64), ..Default::default() };
            fs.setattr(ino, &size_to).unwrap();
            content.resize(size, 0);
        });
    }
    fn xattr(&mut self, path: &str, name: &str, value: Option<&[u8]>) {
        let ino = self.ino(path);
        match value {
            Some(value) => self.fs.setxattr(&caller(), ino, name.as_bytes(), value, 0).unwrap(),
            None => self.fs.removexattr(ino, name.as_bytes()).unwrap(),
        }
        self.object(path).xattrs.entry(name.to_owned()).or_default().push(value.map(<[u8]>::to_vec));
    }

    /// Everything durable; notes what the backing files hold now.
    fn settle(&mut self, host: &Host, tree: &S, note_older: bool) {
        self.fs.commit().unwrap();
        self.note(host, tree, note_older);
    }

    fn note(&mut self, host: &Host, tree: &S, note_older: bool) {
        let mut files = Vec::new();
        collect(tree, tree.root(), &mut files);
        for (ino, bytes) in files {
            let Some(index) = self.model.by_ino.get(&ino) else { continue };
            let object = &mut self.model.objects[*index];
            for slot in bytes.chunks_exact(host.geometry.slot_len()).take(2) {
                if let Ok(header) = Unverified::parse(slot, host.geometry) {
                    let claims = header.claims();
                    object.floors.push(Floor { floor: claims.size_floor, holes: claims.flags & FLAG_HOLES_OK != 0 });
                }
            }
            if note_older {
                object.older = bytes;
            }
        }
    }
}

/// All regular files below, with their bytes.
fn collect<S: Store>(store: &S, dir: &S::Handle, files: &mut Vec<(u64, Vec<u8>)>) {
    for entry in store.list(dir).unwrap() {
        match entry.kind {
            Kind::Directory => collect(store, &store.pin(dir, &entry.name).unwrap(), files),
            Kind::File => {
                let file = store.open_file(Place::Entry { dir, name: &entry.name }, Access::Read).unwrap();
                let mut bytes = vec![0; file.stat().unwrap().size as usize];
                file.read_at(&mut bytes, 0).unwrap();
                files.push((entry.ino, bytes));
            }
            _ => {}
        }
    }
}

const SIZES: [usize; 14] = [0, 1, 100, 4047, 4048, 4049, 4096, 8095, 8096, 8097, 12_144, 20_000, 28_337, 60_000];

/// Files of all shapes, with older versions of most. `open`: the two stores, again and again.
pub fn build<S: Store>(host: &Host, open: &dyn Fn() -> (S, S)) -> Model {
    let start = |model: Model| {
        let (tree, overflow) = open();
        Builder { fs: host.mount(tree, overflow).expect("the tree mounts"), model, inos: HashMap::new() }
    };
    let (tree, _) = open();
    let mut b = start(Model {
        objects: Vec::new(),
        by_ino: HashMap::new(),
        data_pages: 2 * u64::from(host.geometry.header_pages),
    });
    b.add("", Kind::Directory, ROOT, Vec::new());
    for (n, size) in SIZES.into_iter().enumerate() {
        b.create(&format!("f{size}"), &pattern(n as u64 + 1, size));
    }
    for directory in ["d", "e", "e/deep", "e/deep/er", "e/deep/er/still", "tenant", "empty", "long"] {
        b.mkdir(directory);
    }
    if let Some(further) = &host.further {
        let (ino, group) = (b.ino("tenant"), vec![further.key_ref().clone()]);
        b.fs.set_directory_keys(ino, Some(group.into())).unwrap();
    }
    for (n, path) in
        ["d/same", "e/same", "e/deep/one", "e/deep/er/still/two", "tenant/a", "tenant/b"].iter().enumerate()
    {
        b.create(path, &pattern(50 + n as u64, 6000 + 3000 * n));
    }
    for (n, len) in [175, 176, 200, 255].into_iter().enumerate() {
        b.create(
            &format!("long/{}", char::from(b'a' + n as u8).to_string().repeat(len)),
            &pattern(70 + n as u64, 5000),
        );
    }
    for (n, len) in [1, 100, 735, 736, 4000, 4095].into_iter().enumerate() {
        b.symlink(&format!("l{n}"), &format!("{}{}", n, "t".repeat(len - 1)));
    }
    b.symlink("d/link", "../f100");
    b.link("f20000", "d/hard link");
    for (n, path) in ["f100", "f0", "f12144", "d", "e/deep", "tenant/a"].iter().enumerate() {
        b.xattr(path, "user.one", Some(format!("first value of {path}").as_bytes()));
        b.xattr(path, "user.two", Some(&pattern(90 + n as u64, 300)));
        b.xattr(path, &format!("user.{}", "n".repeat(200)), Some(b"long name"));
    }
    // With a hole, and with one punched.
    b.create("sparse", &pattern(40, 3000));
    b.write("sparse", 90_000, &pattern(41, 9000));
    b.create("punched", &pattern(42, 40_000));
    b.change("punched", |fs, ino, content| {
        fs.fallocate(ino, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 10_000, 12_000).unwrap();
        content[10_000..22_000].fill(0);
    });
    b.settle(host, &tree, true);
    let model = b.model;

    let mut b = start(model);
    for (n, path) in ["f4048", "f8097", "f28337", "f60000", "d/same", "tenant/a"].iter().enumerate() {
        b.write(path, 1000, &pattern(100 + n as u64, 5000));
    }
    b.write("f60000", 60_000, &pattern(110, 10_000));
    b.truncate("f12144", 5000);
    b.truncate("f20000", 30_000);
    // Emptied, but its attributes keep the header.
    b.truncate("f100", 0);
    b.xattr("f12144", "user.one", Some(b"second value"));
    b.xattr("d", "user.one", Some(b"second value of d"));
    b.xattr("d", "user.two", None);
    b.settle(host, &tree, false);
    let model = b.model;

    // Left growing by a killed daemon: synced, never committed.
    let mut b = start(model);
    for (n, size) in [1usize, 4048, 9000, 30_000].into_iter().enumerate() {
        let path = format!("growing{size}");
        b.create(&path, &pattern(120 + n as u64, size));
        b.object(&path).growing = true;
        let ino = b.ino(&path);
        b.fs.fsync(ino, true).unwrap();
    }
    b.write("e/deep/one", 12_000, &pattern(130, 7000));
    b.object("e/deep/one").growing = true;
    b.note(host, &tree, false);
    b.model
}
