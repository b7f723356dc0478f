//! The load and its oracle on a plain directory: nothing is wrong there, and what a crash must not do is seen.
//! The disk is asked directly.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::load::{self, Load};
use crate::operations::{Model, Op, file_path};
use crate::{check, common, disk, state, verify};

pub fn run() {
    a_clean_run_has_no_problems_and_goes_on_from_its_state();
    each_damage_is_seen();
    interrupted_operations_have_their_bounds();
    let scratch = common::scratch();
    assert!(disk::loses_what_was_not_flushed(&scratch.path().join("image")).unwrap());
    println!("crash_load: 4 cases passed");
}

struct Run {
    scratch: tempfile::TempDir,
    seed: u64,
}
impl Run {
    fn new(seed: u64) -> Self {
        let run = Self { scratch: common::scratch(), seed };
        fs::create_dir(run.at("tree")).unwrap();
        fs::create_dir(run.at("state")).unwrap();
        run
    }
    fn at(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }
    fn load(&self, limit: u64) {
        let _ = fs::remove_file(self.at("log"));
        let load = Load {
            directory: self.at("tree"),
            state: self.at("state"),
            log: self.at("log"),
            seed: self.seed,
            until: None,
            probe: None,
            limit,
        };
        assert!(load.run().unwrap());
    }
    fn check(&self) -> verify::Problems {
        check(&self.at("tree"), &self.at("state"), &self.at("log"), self.seed).unwrap().0
    }
    /// What worker 0 has.
    fn model(&self) -> Model {
        verify::observe(&self.worker(), &mut verify::Problems::new())
    }
    fn worker(&self) -> PathBuf {
        load::worker_directory(&self.at("tree"), 0)
    }
}

fn a_clean_run_has_no_problems_and_goes_on_from_its_state() {
    let mut run = Run::new(1);
    for seed in 1..4 {
        run.seed = seed;
        run.load(60);
        assert_eq!(run.check(), verify::Problems::new());
        assert!(state::load(&run.at("state"), 0).unwrap().unwrap() == run.model());
    }
}

/// Damage to what no operation was about to touch.
fn each_damage_is_seen() {
    let run = Run::new(7);
    run.load(80);
    let last = state::acknowledged(&run.at("log")).unwrap()[&0];
    assert_eq!(last, 80);
    let (model, pending) = load::replay(Model::default(), run.seed, 0, last);
    let untouched = |name: &u8| !format!("{pending:?}").contains(&format!(": {name}"));
    let name = *model.files.iter().find(|(name, c)| c.bytes.len() > 10 && untouched(name)).unwrap().0;
    let path = file_path(&run.worker(), name);
    let before = fs::read(&path).unwrap();
    let seen = |what: &str, damage: &dyn Fn(&Path)| {
        assert!(run.scan().is_empty(), "before: {:?}", run.scan());
        damage(&path);
        let problems = run.scan();
        assert!(!problems.is_empty(), "{what} was not seen");
        fs::write(&path, &before).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(model.files[&name].mode)).unwrap();
    };
    let write = |path: &Path| OpenOptions::new().write(true).open(path).unwrap();
    seen("a changed byte", &|path| write(path).write_all_at(&[before[5] ^ 1], 5).unwrap());
    seen("a zeroed tail", &|path| write(path).write_all_at(&[0; 4], before.len() as u64 - 4).unwrap());
    seen("a lost byte", &|path| write(path).set_len(before.len() as u64 - 1).unwrap());
    seen("a byte more", &|path| write(path).set_len(before.len() as u64 + 1).unwrap());
    seen("another mode", &|path| fs::set_permissions(path, fs::Permissions::from_mode(0o611)).unwrap());
    seen("a lost file", &|path| fs::remove_file(path).unwrap());
    fs::write(run.worker().join("stranger"), b"x").unwrap();
    assert!(!run.scan().is_empty(), "a stranger was not seen");
}
impl Run {
    /// Like `check`, without moving the state.
    fn scan(&self) -> verify::Problems {
        let mut problems = verify::Problems::new();
        let got = verify::observe(&self.worker(), &mut problems);
        let last = state::acknowledged(&self.at("log")).unwrap()[&0];
        let (old, pending) = load::replay(Model::default(), self.seed, 0, last);
        verify::compare(&old, Some(&pending), &got, &mut problems);
        problems
    }
}

fn interrupted_operations_have_their_bounds() {
    let mut old = Model::default();
    Op::Create { name: 0, len: 10_000, seed: 1 }.apply(&mut old);
    let judge = |op: &Op, change: &dyn Fn(&mut Model)| {
        let mut got = old.clone();
        change(&mut got);
        let mut problems = verify::Problems::new();
        verify::compare(&old, Some(op), &got, &mut problems);
        problems.is_empty()
    };
    let bytes = |model: &mut Model, change: &dyn Fn(&mut Vec<u8>)| change(&mut model.files.get_mut(&0).unwrap().bytes);

    let write = Op::Write { name: 0, offset: 5000, len: 8000, seed: 2 };
    let new = common::pattern(2, 8000);
    assert!(judge(&write, &|_| ()));
    assert!(judge(&write, &|model| write.apply(model)));
    assert!(judge(&write, &|model| bytes(model, &|b| b[6000..7000].copy_from_slice(&new[1000..2000]))));
    assert!(judge(&write, &|model| bytes(model, &|b| b.resize(12_000, 0))));
    assert!(!judge(&write, &|model| bytes(model, &|b| b[6000] = 0)), "zeros over what was synced");
    assert!(!judge(&write, &|model| bytes(model, &|b| b[4999] ^= 1)), "a byte beside it");
    assert!(!judge(&write, &|model| bytes(model, &|b| b.truncate(9999))), "shorter than before");

    let replace = Op::Replace { name: 0, len: 9000, seed: 3 };
    assert!(judge(&replace, &|model| replace.apply(model)));
    assert!(!judge(&replace, &|model| drop(model.files.remove(&0))), "gone");
    assert!(!judge(&replace, &|model| bytes(model, &|b| b.resize(9000, 0))), "neither old nor new");

    let rename = Op::Rename { from: 0, to: 1 };
    assert!(judge(&rename, &|model| rename.apply(model)));
    assert!(!judge(&rename, &|model| drop(model.files.insert(1, model.files[&0].clone()))), "both names");
    assert!(!judge(&rename, &|model| model.files.clear()), "neither name");

    let truncate = Op::Truncate { name: 0, len: 100 };
    assert!(judge(&truncate, &|model| bytes(model, &|b| b[100..].fill(0))));
    assert!(!judge(&truncate, &|model| bytes(model, &|b| b.truncate(5000))), "a size it never had");
    assert!(!judge(&truncate, &|model| bytes(model, &|b| b[99] = 0)), "what was kept");
}
