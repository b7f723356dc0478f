//! The volume file of a mount that writes: new branches and CMKs of directories go in before anything depends on them.
//! Owns the configuration while the mount lasts; decides nothing about keys.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread;

use super::cipher_dir::CipherDir;
use crate::format::KeyGroup;
use crate::format::volume::{
    BranchRecord, DIRECTORY_BRANCHES_MAX, DIRECTORY_CMKS_MAX, DirectoryCmk, VOLUME_FILE_MAX, VolumeConfig, VolumeKeys,
};
use crate::keys::keyring::hangs_on;

/// A request to the thread that writes, and where its answer goes.
enum Request {
    Branch(KeyGroup, BranchRecord, mpsc::SyncSender<()>),
    Cmks(Vec<DirectoryCmk>, mpsc::SyncSender<io::Result<()>>),
    List(mpsc::SyncSender<Vec<DirectoryCmk>>),
}

/// A handle of the thread that writes: one of its own, since an event loop may act with a user's identity at that moment,
/// and the file would become his. It ends with the last handle.
#[derive(Clone)]
pub struct VolumeFile {
    queue: mpsc::Sender<Request>,
}

impl VolumeFile {
    /// Started by a thread with the process's own identity.
    pub fn start(dir: Arc<CipherDir>, mut config: VolumeConfig, keys: VolumeKeys) -> io::Result<Self> {
        let (queue, requests) = mpsc::channel();
        thread::Builder::new().name("volume-file".into()).spawn(move || {
            // Where nobody waits for an answer any more, the mount has ended.
            for request in requests {
                match request {
                    Request::Branch(group, branch, answer) => {
                        put_branch(&mut config, &group, branch);
                        if let Err(e) = write(&dir, &mut config, &keys) {
                            // Files carry their whole chain of keys; only the next mount will start a branch of its own.
                            log::error!(
                                "code=volume-file the new branch key could not be written to the volume file: {e}"
                            );
                        }
                        let _ = answer.send(());
                    }
                    Request::Cmks(cmks, answer) => {
                        let before = config.directory_cmks.clone();
                        let written = put_cmks(&mut config, cmks).and_then(|()| write(&dir, &mut config, &keys));
                        if written.is_err() {
                            config.directory_cmks = before;
                        }
                        let _ = answer.send(written);
                    }
                    Request::List(answer) => {
                        let _ = answer.send(config.directory_cmks.clone());
                    }
                }
            }
        })?;
        Ok(Self { queue })
    }

    /// Writes down that new files of a group hang on this branch from now on. What fails is logged: files need no record.
    pub fn put_branch(&self, group: &KeyGroup, branch: &BranchRecord) {
        let _ = self.ask(|answer| Request::Branch(group.clone(), branch.clone(), answer));
    }

    /// Adds CMKs of directories, or gives those that are there another URI; durable when this returns.
    pub fn put_directory_cmks(&self, cmks: Vec<DirectoryCmk>) -> io::Result<()> {
        self.ask(|answer| Request::Cmks(cmks, answer))?
    }

    pub fn directory_cmks(&self) -> io::Result<Vec<DirectoryCmk>> {
        self.ask(Request::List)
    }

    fn ask<T>(&self, request: impl FnOnce(mpsc::SyncSender<T>) -> Request) -> io::Result<T> {
        let gone = || io::Error::other("the thread that writes the volume file has ended");
        let (answer, answered) = mpsc::sync_channel(1);
        self.queue.send(request(answer)).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())
    }
}

fn put_branch(config: &mut VolumeConfig, group: &KeyGroup, branch: BranchRecord) {
    match group {
        None => config.branch = Some(branch),
        Some(names) => {
            config.directory_branches.retain(|old| !hangs_on(old, names));
            config.directory_branches.push(branch);
            let too_many = config.directory_branches.len().saturating_sub(DIRECTORY_BRANCHES_MAX);
            config.directory_branches.drain(..too_many);
        }
    }
}

fn put_cmks(config: &mut VolumeConfig, cmks: Vec<DirectoryCmk>) -> io::Result<()> {
    for cmk in cmks {
        match config.directory_cmks.iter_mut().find(|known| known.key == cmk.key) {
            Some(known) => *known = cmk,
            None => config.directory_cmks.push(cmk),
        }
    }
    let count = config.directory_cmks.len();
    if count > DIRECTORY_CMKS_MAX {
        return Err(io::Error::other(format!(
            "the volume would list {count} CMKs of directories, {DIRECTORY_CMKS_MAX} is the most"
        )));
    }
    Ok(())
}

/// Where the file would become too long to be read, the oldest branches of directories go: each costs its group a new one.
fn write(dir: &CipherDir, config: &mut VolumeConfig, keys: &VolumeKeys) -> io::Result<()> {
    while config.encode(keys).len() > VOLUME_FILE_MAX && !config.directory_branches.is_empty() {
        config.directory_branches.remove(0);
    }
    let len = config.encode(keys).len();
    if len > VOLUME_FILE_MAX {
        return Err(io::Error::other(format!("the volume file would have {len} bytes, {VOLUME_FILE_MAX} is the most")));
    }
    dir.write_volume(config, keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::secret::Secret32;
    use crate::format::KeyRef;
    use crate::format::header::CmkSlot;
    use crate::format::volume::{KeyMode, UnverifiedVolume, VOLUME_FILE};

    fn keys() -> VolumeKeys {
        VolumeKeys::derive(&[1; 16], &Secret32::from_bytes([2; 32]))
    }

    fn config() -> VolumeConfig {
        VolumeConfig {
            volume_id: [1; 16],
            created: 0,
            plaintext_names: false,
            header_pages: 1,
            key_mode: KeyMode::Branch,
            branch_max_age: 1,
            branch_max_files: 1,
            cmks: vec!["keyfile:///a".into()],
            volume_key: vec![slot("own", 60)],
            branch: None,
            directory_cmks: Vec::new(),
            directory_branches: Vec::new(),
        }
    }

    fn slot(name: &str, blob: usize) -> CmkSlot {
        CmkSlot { provider: "keyfile".into(), key_ref: name.into(), blob: vec![7; blob], commitment: [3; 32] }
    }

    fn key(name: &str) -> KeyRef {
        KeyRef { provider: "keyfile".into(), key: name.into() }
    }

    fn cmk(name: &str, uri: &str) -> DirectoryCmk {
        DirectoryCmk { key: key(name), uri: uri.into() }
    }

    fn branch(n: u8, names: &[&str]) -> BranchRecord {
        BranchRecord { id: [n; 16], created: 0, slots: names.iter().map(|name| slot(name, 60)).collect() }
    }

    #[test]
    fn branches_and_cmks_are_on_disk_when_the_call_returns() {
        let top = tempfile::tempdir().unwrap();
        let dir = Arc::new(CipherDir::open(top.path()).unwrap());
        let file = VolumeFile::start(dir, config(), keys()).unwrap();
        let on_disk = || {
            let bytes = std::fs::read(top.path().join(VOLUME_FILE)).unwrap();
            UnverifiedVolume::parse(&bytes).unwrap().verify(&keys()).unwrap()
        };
        let group = |names: &[&str]| Some(names.iter().map(|name| key(name)).collect());
        file.put_branch(&None, &branch(1, &["own"]));
        file.put_branch(&group(&["a"]), &branch(2, &["a"]));
        file.put_branch(&group(&["a", "b"]), &branch(3, &["a", "b"]));
        file.put_branch(&group(&["a"]), &branch(4, &["a"]));
        let config = on_disk();
        assert_eq!(config.branch.unwrap().id, [1; 16]);
        assert_eq!(config.directory_branches.iter().map(|b| b.id[0]).collect::<Vec<_>>(), [3, 4]);
        file.put_directory_cmks(vec![cmk("a", "keyfile:///a"), cmk("b", "keyfile:///b")]).unwrap();
        file.put_directory_cmks(vec![cmk("a", "keyfile:///moved")]).unwrap();
        assert_eq!(on_disk().directory_cmks, [cmk("a", "keyfile:///moved"), cmk("b", "keyfile:///b")]);
        assert_eq!(file.directory_cmks().unwrap(), on_disk().directory_cmks);
    }

    #[test]
    fn what_cannot_be_written_is_not_believed() {
        let top = tempfile::tempdir().unwrap();
        let dir = Arc::new(CipherDir::open(top.path()).unwrap());
        let file = VolumeFile::start(dir, config(), keys()).unwrap();
        let many = (0..=DIRECTORY_CMKS_MAX).map(|n| cmk(&format!("k{n}"), "keyfile:///a")).collect();
        let error = file.put_directory_cmks(many).unwrap_err().to_string();
        assert!(error.contains("257"), "{error}");
        let long = cmk("k", &"x".repeat(VOLUME_FILE_MAX));
        assert!(file.put_directory_cmks(vec![long]).is_err());
        assert_eq!(file.directory_cmks().unwrap(), []);
        file.put_directory_cmks(vec![cmk("k", "keyfile:///a")]).unwrap();
    }

    #[test]
    fn a_file_that_grows_too_long_loses_the_oldest_branches_of_directories() {
        let top = tempfile::tempdir().unwrap();
        let dir = CipherDir::open(top.path()).unwrap();
        let mut config = config();
        for n in 0..200 {
            let name = format!("k{n}");
            let names = [key(&name)];
            let big = BranchRecord { id: [n; 16], created: 0, slots: vec![slot(&name, 6144)] };
            put_branch(&mut config, &Some(names.into()), big);
        }
        write(&dir, &mut config, &keys()).unwrap();
        let bytes = std::fs::read(top.path().join(VOLUME_FILE)).unwrap();
        assert!(bytes.len() <= VOLUME_FILE_MAX);
        let read = UnverifiedVolume::parse(&bytes).unwrap().verify(&keys()).unwrap();
        assert_eq!(read.directory_branches.last().unwrap().id, [199; 16]);
        assert!(read.directory_branches.len() > 100);
        for n in 0..=u8::MAX {
            for m in 0..2 {
                let name = format!("k{n}-{m}");
                put_branch(&mut config, &Some([key(&name)].into()), branch(n, &[&name]));
            }
        }
        assert_eq!(config.directory_branches.len(), DIRECTORY_BRANCHES_MAX);
    }
}
