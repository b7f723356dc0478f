//! How much there is to read, for a progress bar: counted beside the check, by attributes alone. Reads no content, reports nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::format::geometry::{Geometry, PAGE};
use crate::format::volume::TREE_DIR;
use crate::store::{Kind, Place, Stat, Store};

/// Directories on the way down that are held open; what lies deeper is not counted.
const DEPTH_MAX: usize = 64;

/// Tells `found` the bytes that `Sink::progress` will be told of, as they are found, until all are counted or `stop` is set.
/// What cannot be read is left out.
pub fn measure<S: Store>(top: &S, header_pages: u32, quick: bool, stop: &AtomicBool, found: &dyn Fn(u64)) {
    let geometry = Geometry { header_pages };
    let Ok(tree) = top.pin(top.root(), TREE_DIR.as_bytes()) else { return };
    let Ok(dev) = top.stat(Place::Pinned(&tree)).map(|stat| stat.dev) else { return };
    let mut stack = vec![(subdirectories(top, &tree, geometry, quick, found), tree)];
    while let Some((names, dir)) = stack.last_mut() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Some(name) = names.pop() else {
            stack.pop();
            continue;
        };
        let Ok(inner) = top.pin(dir, &name) else { continue };
        let enter = top.stat(Place::Pinned(&inner)).is_ok_and(|stat| stat.kind == Kind::Directory && stat.dev == dev);
        if enter && stack.len() < DEPTH_MAX {
            stack.push((subdirectories(top, &inner, geometry, quick, found), inner));
        }
    }
}

fn subdirectories<S: Store>(
    top: &S,
    dir: &S::Handle,
    geometry: Geometry,
    quick: bool,
    found: &dyn Fn(u64),
) -> Vec<Box<[u8]>> {
    let mut names = Vec::new();
    for entry in top.list(dir).unwrap_or_default() {
        match entry.kind {
            Kind::Directory => names.push(entry.name),
            Kind::File => {
                if let Ok(stat) = top.stat(Place::Entry { dir, name: &entry.name }) {
                    found(content(&stat, geometry, quick));
                }
            }
            _ => {}
        }
    }
    names
}

/// Bytes of blocks of one name of a file, holes left out.
fn content(stat: &Stat, geometry: Geometry, quick: bool) -> u64 {
    let held = stat.blocks.saturating_mul(512).saturating_sub(geometry.slot_len() as u64);
    let pages = stat.size.saturating_sub(geometry.data_start()).div_ceil(PAGE as u64);
    let most = if quick { PAGE as u64 } else { u64::MAX };
    held.min(pages.saturating_mul(PAGE as u64)).min(most) / stat.nlink.max(1)
}
