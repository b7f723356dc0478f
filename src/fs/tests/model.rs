//! Schedules of the node table and of the dirty set.

use shuttle::thread;

use super::*;
use crate::fs::nodes::{Link, Node, NodeTable};
use crate::store::Kind;

type Table = NodeTable<MemoryStore>;

fn explore(rounds: usize, model: impl Fn() + Send + Sync + Clone + 'static) {
    let config = || {
        let mut config = shuttle::Config::default();
        config.stack_size = 2 << 20;
        config.max_steps = shuttle::MaxSteps::FailAfter(10_000_000);
        config
    };
    shuttle::Runner::new(shuttle::scheduler::RandomScheduler::new(rounds), config()).run(model.clone());
    shuttle::Runner::new(shuttle::scheduler::PctScheduler::new(3, rounds), config()).run(model);
}

fn link(name: u8) -> Link {
    Link { parent: ROOT, name: Box::from([name].as_slice()) }
}

/// Lookups, forgets and reaps of one number by several threads: while somebody holds a lookup there is one node, and
/// afterwards none.
#[test]
fn a_node_lives_exactly_as_long_as_it_is_counted() {
    explore(3000, || {
        let table = Arc::new(Table::new());
        let threads: Vec<_> = (0..3)
            .map(|n| {
                let table = table.clone();
                thread::spawn(move || {
                    let root = table.find(ROOT).unwrap();
                    let mine = table.attach(9, Kind::File, &root, link(n)).unwrap();
                    let again = table.attach(9, Kind::File, &root, link(n)).unwrap();
                    assert!(Arc::ptr_eq(&mine, &again), "a counted node was replaced");
                    table.reap(9);
                    assert!(table.find(9).is_some_and(|found| Arc::ptr_eq(&found, &mine)));
                    table.forget(9, 1);
                    assert!(table.find(9).is_some_and(|found| Arc::ptr_eq(&found, &mine)));
                    table.forget(9, 1);
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!((table.len(), table.lookups(9)), (1, 0));
    });
}

/// An open keeps a node that the kernel forgets, and whoever comes last removes it.
#[test]
fn a_node_that_is_open_is_not_reaped() {
    explore(3000, || {
        let table = Arc::new(Table::new());
        let root = table.find(ROOT).unwrap();
        let node: Arc<Node<MemoryStore>> = table.attach(9, Kind::File, &root, link(0)).unwrap();
        node.with(|state| state.opens = 1);
        let (forgetting, closing) = (table.clone(), table.clone());
        let forget = thread::spawn(move || forgetting.forget(9, 1));
        let close = thread::spawn(move || {
            let node = closing.find(9).expect("it is open");
            node.with(|state| state.opens -= 1);
            closing.reap(9);
        });
        forget.join().unwrap();
        close.join().unwrap();
        assert!(table.find(9).is_none());
    });
}

/// Writers, the background commit and closes: whatever the schedule, one last commit leaves nothing uncommitted, and what was
/// written is what a later mount reads.
#[test]
fn no_change_is_missed_by_the_commit() {
    explore(400, || {
        let volume = Volume::new();
        let fs = Arc::new(volume.mount());
        let ino = file(&fs, ROOT, b"f", b"first");
        let (writing, committing) = (fs.clone(), fs.clone());
        let writer = thread::spawn(move || {
            writing.open(ino, WRITE).unwrap();
            writing.write(ino, 5, b" second").unwrap();
            writing.release(ino);
            writing.open(ino, WRITE).unwrap();
            writing.write(ino, 12, b" third").unwrap();
            writing.release(ino);
        });
        let commit = thread::spawn(move || {
            committing.commit().unwrap();
            committing.commit().unwrap();
        });
        writer.join().unwrap();
        commit.join().unwrap();
        fs.commit().unwrap();
        assert!(!fs.needs_commit());
        let node = fs.node(ino).unwrap();
        assert!(node.content().is_none_or(|content| !content.needs_commit()), "a change that no commit knows of");
        assert!(node.content().is_none(), "content of a closed and committed file stays");
        drop(node);
        fs.forget(ino, 1);
        let later = volume.mount();
        let found = later.lookup(ROOT, b"f").unwrap();
        assert_eq!(content(&later, found.ino).unwrap(), b"first second third");
    });
}

/// The kernel forgets and looks up again while a closed file waits for its commit.
#[test]
fn a_forgotten_file_is_committed_and_found_again() {
    explore(400, || {
        let volume = Volume::new();
        let fs = Arc::new(volume.mount());
        let ino = file(&fs, ROOT, b"f", b"content");
        let (forgetting, committing, looking) = (fs.clone(), fs.clone(), fs.clone());
        let threads = [
            thread::spawn(move || forgetting.forget(ino, 1)),
            thread::spawn(move || committing.commit().unwrap()),
            thread::spawn(move || {
                let found = looking.lookup(ROOT, b"f").unwrap();
                assert_eq!((found.ino, content(&looking, found.ino).unwrap()), (ino, b"content".to_vec()));
                looking.forget(found.ino, 1);
            }),
        ];
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        fs.commit().unwrap();
        assert!(!fs.needs_commit());
        assert_eq!(fs.nodes.len(), 1, "a node that nothing refers to");
    });
}
