//! The oracle: what a crash may leave of a worker's directory, given what was acknowledged and the one operation under way.
//! Reads the tree, changes nothing. Must not know how the crash was made.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use crate::operations::{
    Content, DIRECTORIES, FILES, INNER, Model, Op, TEMPORARY, attribute_name, directory_path, file_path,
};

/// What is wrong, a line each.
pub type Problems = Vec<String>;

/// Every byte of a file; its length must be its st_size.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let size = file.metadata()?.len();
    if size != bytes.len() as u64 {
        return Err(io::Error::other(format!("st_size is {size}, {} bytes are read", bytes.len())));
    }
    Ok(bytes)
}
fn attribute(path: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; 4096];
    match rustix::fs::lgetxattr(path, name, &mut value[..]) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(rustix::io::Errno::NODATA) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What a worker's directory holds. What cannot be read, and names that nobody made, are problems.
pub fn observe(directory: &Path, problems: &mut Problems) -> Model {
    let mut model = Model::default();
    let listed = match fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
        Ok(listed) => listed,
        Err(error) => {
            problems.push(format!("{}: {error}", directory.display()));
            return model;
        }
    };
    for entry in listed {
        let path = entry.path();
        if let Some(name) = (0..FILES).find(|name| path == file_path(directory, *name)) {
            match content(&path) {
                Ok(content) => drop(model.files.insert(name, content)),
                Err(error) => problems.push(format!("{}: {error}", short(&path))),
            }
        } else if let Some(name) = (0..DIRECTORIES).find(|name| path == directory_path(directory, *name)) {
            match inner(&path) {
                Ok(inner) => drop(model.directories.insert(name, inner)),
                Err(error) => problems.push(format!("{}: {error}", short(&path))),
            }
        } else if !path.as_os_str().as_bytes().ends_with(TEMPORARY.as_bytes()) {
            problems.push(format!("{}: nobody made it", short(&path)));
        }
    }
    model
}
fn content(path: &Path) -> io::Result<Content> {
    let mode = fs::symlink_metadata(path)?.permissions().mode() & 0o7777;
    let mut content = Content { bytes: read(path)?, mode, ..Content::default() };
    for key in 0..3 {
        if let Some(value) = attribute(path, &attribute_name(key))? {
            content.attributes.insert(key, value);
        }
    }
    Ok(content)
}
fn inner(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut found = None;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name() != INNER {
            return Err(io::Error::other(format!("nobody made {}", entry.file_name().display())));
        }
        found = Some(read(&entry.path())?);
    }
    Ok(found)
}
/// Long names are cut for messages.
fn short(path: &Path) -> String {
    path.display().to_string().replace(&"L".repeat(240), "L…")
}

/// `old` with `pending` may have become `got`: everything else is a problem.
pub fn compare(old: &Model, pending: Option<&Op>, got: &Model, problems: &mut Problems) {
    let mut new = old.clone();
    if let Some(op) = pending {
        op.apply(&mut new);
    }
    let (files, directories) = touched(pending);
    for name in (0..FILES).filter(|name| !files.contains(name)) {
        let (want, is) = (old.files.get(&name), got.files.get(&name));
        if want != is {
            problems.push(format!("f{name}, acknowledged: {}; pending {pending:?}", difference(want, is)));
        }
    }
    for name in (0..DIRECTORIES).filter(|name| !directories.contains(name)) {
        if old.directories.get(&name) != got.directories.get(&name) {
            let len = |model: &Model| model.directories.get(&name).map(|inner| inner.as_ref().map(Vec::len));
            problems.push(format!("d{name}, acknowledged: {:?}, want {:?}; pending {pending:?}", len(got), len(old)));
        }
    }
    let Some(op) = pending else { return };
    if let Err(what) = interrupted(op, old, &new, got) {
        problems.push(format!("{what}; interrupted {op:?}"));
    }
}
fn touched(pending: Option<&Op>) -> (Vec<u8>, Vec<u8>) {
    match pending {
        None => (vec![], vec![]),
        Some(Op::Rename { from, to }) => (vec![*from, *to], vec![]),
        Some(Op::MoveDirectory { from, to }) => (vec![], vec![*from, *to]),
        Some(Op::Mkdir { name, .. } | Op::Rmdir { name }) => (vec![], vec![*name]),
        Some(
            Op::Write { name, .. }
            | Op::Truncate { name, .. }
            | Op::Punch { name, .. }
            | Op::Extend { name, .. }
            | Op::Create { name, .. }
            | Op::Replace { name, .. }
            | Op::Unlink { name }
            | Op::SetAttribute { name, .. }
            | Op::RemoveAttribute { name, .. }
            | Op::Chmod { name, .. },
        ) => (vec![*name], vec![]),
    }
}
fn difference(want: Option<&Content>, got: Option<&Content>) -> String {
    let (Some(want), Some(got)) = (want, got) else {
        let len = |content: Option<&Content>| content.map(|c| c.bytes.len());
        return format!("{:?} bytes, want {:?}", len(got), len(want));
    };
    let first = want.bytes.iter().zip(&got.bytes).position(|(a, b)| a != b);
    let attributes = got.attributes == want.attributes;
    format!(
        "{} bytes, want {}, first difference at {first:?}; modes {:o} and {:o}; same attributes: {attributes}",
        got.bytes.len(),
        want.bytes.len(),
        got.mode,
        want.mode
    )
}

/// The objects of one interrupted operation.
fn interrupted(op: &Op, old: &Model, new: &Model, got: &Model) -> Result<(), String> {
    let require = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
    match op {
        Op::Rename { from, to } => {
            let pair = |model: &Model| (model.files.get(from).cloned(), model.files.get(to).cloned());
            require([pair(old), pair(new)].contains(&pair(got)), "neither before nor after the rename")
        }
        Op::MoveDirectory { from, to } => {
            let pair = |model: &Model| (model.directories.get(from).cloned(), model.directories.get(to).cloned());
            require([pair(old), pair(new)].contains(&pair(got)), "neither before nor after the rename")
        }
        Op::Mkdir { name, .. } => match (got.directories.get(name), new.directories.get(name)) {
            (None | Some(None), _) => Ok(()),
            (Some(Some(inner)), Some(Some(new))) => growing(inner, &[], new),
            _ => Err("cannot be".to_owned()),
        },
        Op::Rmdir { name } => {
            let is = got.directories.get(name);
            require(is.is_none_or(Option::is_none) || is == old.directories.get(name), "not what is removed")
        }
        Op::Unlink { name } => {
            let is = got.files.get(name);
            require(is.is_none() || is == old.files.get(name), "neither there nor gone")
        }
        Op::Replace { name, .. } => {
            let is = got.files.get(name);
            let what = || difference(old.files.get(name), is);
            require(is == old.files.get(name) || is == new.files.get(name), &format!("neither old nor new: {}", what()))
        }
        Op::Create { name, .. } => match (got.files.get(name), new.files.get(name)) {
            (None, _) => Ok(()),
            (Some(is), Some(new)) => {
                require(is.mode == new.mode && is.attributes.is_empty(), "attributes that nobody set")?;
                growing(&is.bytes, &[], &new.bytes)
            }
            _ => Err("cannot be".to_owned()),
        },
        Op::SetAttribute { name, .. } | Op::RemoveAttribute { name, .. } | Op::Chmod { name, .. } => {
            let is = got.files.get(name);
            require(is == old.files.get(name) || is == new.files.get(name), "neither old nor new attributes")
        }
        Op::Write { name, .. } | Op::Truncate { name, .. } | Op::Punch { name, .. } | Op::Extend { name, .. } => {
            let (Some(is), Some(old), Some(new)) = (got.files.get(name), old.files.get(name), new.files.get(name))
            else {
                return Err("the file is gone".to_owned());
            };
            require(is.mode == old.mode && is.attributes == old.attributes, "attributes changed")?;
            match op {
                Op::Truncate { .. } => {
                    let sizes = [old.bytes.len(), new.bytes.len()];
                    require(sizes.contains(&is.bytes.len()), &format!("size {}, of {sizes:?}", is.bytes.len()))?;
                    // What is cut off may read as zeros before the size changes.
                    mixture(&is.bytes, &old.bytes, &new.bytes, new.bytes.len())
                }
                _ => growing(&is.bytes, &old.bytes, &new.bytes),
            }
        }
    }
}
/// A mixture of two versions whose size only grows: past the old size what was not yet written is zeros.
fn growing(got: &[u8], old: &[u8], new: &[u8]) -> Result<(), String> {
    let sizes = old.len().min(new.len())..=old.len().max(new.len());
    if !sizes.contains(&got.len()) {
        return Err(format!("size {}, of {sizes:?}", got.len()));
    }
    mixture(got, old, new, old.len())
}
/// Each byte is of the old or the new version; zeros also from `zeros` on.
fn mixture(got: &[u8], old: &[u8], new: &[u8], zeros: usize) -> Result<(), String> {
    let wrong = got.iter().enumerate().position(|(index, byte)| {
        let either = old.get(index) == Some(byte) || new.get(index) == Some(byte);
        !(either || *byte == 0 && index >= zeros)
    });
    wrong.map_or(Ok(()), |index| {
        Err(format!("byte {index} of {} is neither old nor new ({}, {})", got.len(), old.len(), new.len()))
    })
}

/// Everything below `root` lists and reads, whoever made it and whether it was ever synced. Returns the objects seen.
pub fn read_everything(root: &Path, problems: &mut Problems) -> u64 {
    let (mut seen, mut pending) = (0, vec![root.to_owned()]);
    while let Some(directory) = pending.pop() {
        let listed = fs::read_dir(&directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let listed = listed.unwrap_or_else(|error| {
            problems.push(format!("{}: listing: {error}", short(&directory)));
            Vec::new()
        });
        for entry in listed {
            seen += 1;
            let path = entry.path();
            if let Err(error) = read_one(&path, &mut pending) {
                problems.push(format!("{}: {error}", short(&path)));
            }
        }
    }
    seen
}
fn read_one(path: &Path, directories: &mut Vec<std::path::PathBuf>) -> io::Result<()> {
    let facts = fs::symlink_metadata(path)?;
    if facts.is_dir() {
        directories.push(path.to_owned());
    } else if facts.is_symlink() {
        let target = fs::read_link(path)?;
        if target.as_os_str().len() as u64 != facts.size() {
            return Err(io::Error::other("st_size of a link is not its target's length"));
        }
        return Ok(());
    } else {
        read(path)?;
    }
    let mut names = vec![0; 65_536];
    let len = rustix::fs::llistxattr(path, &mut names[..])?;
    for name in names[..len].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user.")) {
        attribute(path, &String::from_utf8_lossy(name))?;
    }
    Ok(())
}
