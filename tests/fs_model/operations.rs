//! What may happen to a tree, chosen at random.

use proptest::prelude::*;

#[derive(Debug, Clone, Copy)]
pub enum Resize {
    Truncate,
    Punch,
    Zero,
    Allocate,
}

#[derive(Debug, Clone)]
pub enum Op {
    Create {
        dir: usize,
        name: usize,
        keep_open: bool,
    },
    Mkdir {
        dir: usize,
        name: usize,
    },
    Symlink {
        dir: usize,
        name: usize,
        len: usize,
    },
    Fifo {
        dir: usize,
        name: usize,
    },
    Link {
        object: usize,
        dir: usize,
        name: usize,
    },
    Unlink {
        dir: usize,
        name: usize,
    },
    Rmdir {
        dir: usize,
        name: usize,
    },
    Rename {
        from: (usize, usize),
        to: (usize, usize),
        mode: u8,
    },
    Open {
        object: usize,
        write: bool,
        truncate: bool,
    },
    Close {
        open: usize,
    },
    Write {
        open: usize,
        offset: u64,
        len: usize,
        seed: u8,
    },
    Read {
        open: usize,
        offset: u64,
        len: usize,
    },
    Resize {
        object: usize,
        how: Resize,
        offset: u64,
        len: u64,
    },
    Copy {
        from: usize,
        to: usize,
        offset: u64,
        len: u64,
    },
    Chmod {
        object: usize,
        mode: u32,
    },
    SetXattr {
        object: usize,
        name: usize,
        len: usize,
        seed: u8,
    },
    RemoveXattr {
        object: usize,
        name: usize,
    },
    Fsync {
        open: usize,
    },
    Commit,
    /// The kernel forgets everything that is not open.
    Forget,
    /// A clean unmount and a new mount.
    Remount,
    /// Every key goes; the next use finds it again.
    DropKeys,
    /// The daemon dies; the backing store lives on.
    Kill,
    Compare,
}

pub fn names() -> Vec<Vec<u8>> {
    vec![
        b"a".to_vec(),
        b"b".to_vec(),
        b".hidden".to_vec(),
        b"\xff\x01 odd\n".to_vec(),
        // About where encoded names become too long, and the longest.
        vec![b'm'; 174],
        vec![b'n'; 176],
        vec![b'l'; 255],
        [vec![b'l'; 254], vec![b'k']].concat(),
    ]
}

pub const XATTRS: [&str; 3] = ["user.one", "user.a rather longer name than the first", "trusted.two"];

pub fn ops() -> impl Strategy<Value = Op> {
    let n = 0usize..8;
    let some = 0usize..64;
    let offset = prop_oneof![0u64..100, 3900u64..4200, 0u64..30_000];
    let len = prop_oneof![0usize..100, 3900usize..4200, 0usize..20_000];
    let resize = prop_oneof![
        3 => Just(Resize::Truncate),
        1 => Just(Resize::Punch),
        1 => Just(Resize::Zero),
        1 => Just(Resize::Allocate)
    ];
    prop_oneof![
        6 => (some.clone(), n.clone(), any::<bool>()).prop_map(|(dir, name, keep_open)| Op::Create { dir, name, keep_open }),
        5 => (some.clone(), n.clone()).prop_map(|(dir, name)| Op::Mkdir { dir, name }),
        2 => (some.clone(), n.clone(), prop_oneof![1usize..60, 700usize..760, 4000usize..4096])
            .prop_map(|(dir, name, len)| Op::Symlink { dir, name, len }),
        1 => (some.clone(), n.clone()).prop_map(|(dir, name)| Op::Fifo { dir, name }),
        3 => (some.clone(), some.clone(), n.clone()).prop_map(|(object, dir, name)| Op::Link { object, dir, name }),
        3 => (some.clone(), n.clone()).prop_map(|(dir, name)| Op::Unlink { dir, name }),
        2 => (some.clone(), n.clone()).prop_map(|(dir, name)| Op::Rmdir { dir, name }),
        8 => ((some.clone(), n.clone()), (some.clone(), n.clone()), 0u8..4)
            .prop_map(|(from, to, mode)| Op::Rename { from, to, mode }),
        4 => (some.clone(), any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(object, write, truncate)| Op::Open { object, write, truncate }),
        3 => some.clone().prop_map(|open| Op::Close { open }),
        10 => (some.clone(), offset.clone(), len.clone(), any::<u8>())
            .prop_map(|(open, offset, len, seed)| Op::Write { open, offset, len, seed }),
        3 => (some.clone(), offset.clone(), len).prop_map(|(open, offset, len)| Op::Read { open, offset, len }),
        4 => (some.clone(), resize, offset.clone(), 1u64..20_000)
            .prop_map(|(object, how, offset, len)| Op::Resize { object, how, offset, len }),
        1 => (some.clone(), some.clone(), offset, 0u64..20_000)
            .prop_map(|(from, to, offset, len)| Op::Copy { from, to, offset, len }),
        1 => (some.clone(), 0u32..0o1000).prop_map(|(object, mode)| Op::Chmod { object, mode }),
        3 => (some.clone(), 0usize..3, 0usize..300, any::<u8>())
            .prop_map(|(object, name, len, seed)| Op::SetXattr { object, name, len, seed }),
        1 => (some.clone(), 0usize..3).prop_map(|(object, name)| Op::RemoveXattr { object, name }),
        1 => some.prop_map(|open| Op::Fsync { open }),
        2 => Just(Op::Commit),
        2 => Just(Op::Forget),
        1 => Just(Op::Remount),
        2 => Just(Op::DropKeys),
        1 => Just(Op::Kill),
        1 => Just(Op::Compare),
    ]
}
