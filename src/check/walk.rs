//! The way through the tree: depth first, in bounded memory and descriptors, never over a link or out of the file system.
//! Knows directories as places; what is in them is told by `directory`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use super::content::Work;
use super::directory::Child;
use super::place::{Directory, Spot};
use super::queue::{Job, Queue};
use super::small::SealedBy;
use super::{About, Check, problem};
use crate::format::DirId;
use crate::store::{Kind, Place, Store};

/// Directories on the way down that stay open; those above are found again by their names.
const OPEN_MAX: usize = 64;

/// A directory whose subdirectories are being entered.
struct Frame<H> {
    dir: Arc<Directory>,
    id: Option<DirId>,
    handle: Option<Arc<H>>,
    /// Still to come, last one first.
    children: Vec<Child>,
}

impl<S: Store> Check<'_, S> {
    /// `root`: the tree directory.
    pub(super) fn walk(&self, root: Arc<S::Handle>, ino: u64) {
        let work: Work<S> = Queue::new();
        thread::scope(|scope| {
            for n in 0..self.settings.jobs {
                let present = work.served();
                let worker = || {
                    let _present = present;
                    self.serve(&work);
                };
                if let Err(e) = thread::Builder::new().name(format!("check-{n}")).spawn_scoped(scope, worker) {
                    log::warn!("going on with {n} threads: {e}");
                }
            }
            self.descend(root, ino, &work);
            work.close();
            // Helps with what is left.
            self.serve(&work);
        });
    }

    fn serve(&self, work: &Work<S>) {
        while let Some(job) = work.take() {
            match job {
                Job::Shared(shared) => self.help(&shared),
                Job::Single(spot) => self.object(spot, work),
            }
        }
    }

    /// Leaves an object to the workers, where there are any.
    pub(super) fn hand_on(&self, spot: Spot<S::Handle>, work: &Work<S>) {
        if let Some(spot) = work.push(spot) {
            self.object(spot, work);
        }
    }

    fn object(&self, spot: Spot<S::Handle>, work: &Work<S>) {
        match spot.kind {
            Kind::File => self.file(spot, work),
            Kind::Symlink => self.symlink(&spot),
            _ => {
                let place = spot.place();
                self.xattrs(place, About::Spot(&spot), &SealedBy::object());
            }
        }
    }

    fn descend(&self, root: Arc<S::Handle>, ino: u64, work: &Work<S>) {
        let dir = Arc::new(Directory::root(ino));
        self.seen.lock().directories.insert(ino);
        let Some((id, children)) = self.scan(&dir, &root, None, None, work) else { return };
        let mut stack = vec![Frame { dir, id, handle: Some(root), children }];
        loop {
            let Some(frame) = stack.last_mut() else { return };
            let Some(child) = frame.children.pop() else {
                stack.pop();
                continue;
            };
            if frame.handle.is_none() && !self.reopen(&mut stack) {
                continue;
            }
            if let Some(next) = self.enter(&stack, child, work) {
                stack.push(next);
                if let Some(far) = stack.len().checked_sub(OPEN_MAX + 1).filter(|at| *at > 0) {
                    stack[far].handle = None;
                }
            }
        }
    }

    fn enter(&self, stack: &[Frame<S::Handle>], child: Child, work: &Work<S>) -> Option<Frame<S::Handle>> {
        let above = stack.last()?;
        let spot = Spot {
            dir: above.dir.clone(),
            handle: above.handle.clone()?,
            raw: child.raw,
            plain: child.plain,
            kind: Kind::Directory,
            stranger: child.stranger,
        };
        let about = About::Spot(&spot);
        let opened = self
            .top
            .pin(&spot.handle, &spot.raw)
            .and_then(|handle| Ok((self.top.stat(Place::Pinned(&handle))?, Arc::new(handle))));
        let (stat, handle) = match opened {
            Ok(opened) => opened,
            Err(e) => {
                self.io_trouble(about, "opening the directory", &e);
                return None;
            }
        };
        if stat.kind != Kind::Directory {
            self.incomplete.store(true, Ordering::Relaxed);
            self.report(&problem::CHANGED, about, "it was a directory a moment ago");
            return None;
        }
        if stat.dev != self.dev.load(Ordering::Relaxed) {
            self.incomplete.store(true, Ordering::Relaxed);
            self.report(&problem::OTHER_FILESYSTEM, about, "another file system is mounted here");
            return None;
        }
        if !self.seen.lock().directories.insert(stat.ino) {
            // What it hides was not looked at.
            self.incomplete.store(true, Ordering::Relaxed);
            self.report(&problem::OTHER_FILESYSTEM, about, "this directory stands in another place, too: a bind mount");
            return None;
        }
        let dir = Arc::new(Directory::below(&spot.dir, &spot.raw, spot.plain.as_deref(), stat.ino));
        let (id, children) = self.scan(&dir, &handle, above.id, Some(&spot), work)?;
        Some(Frame { dir, id, handle: Some(handle), children })
    }

    /// Opens the last directory of the stack and those before it again, by their names. Where one is not there any more, it
    /// and what is below it leave the stack.
    fn reopen(&self, stack: &mut Vec<Frame<S::Handle>>) -> bool {
        let known = stack.iter().enumerate().rev().find_map(|(at, frame)| Some((at, frame.handle.clone()?)));
        // The root always is.
        let Some((known, mut handle)) = known else {
            stack.clear();
            return false;
        };
        let keep_from = stack.len().saturating_sub(OPEN_MAX);
        let mut at = known + 1;
        while let Some(frame) = stack.get_mut(at) {
            let dir = frame.dir.clone();
            let opened = self.top.pin(&handle, dir.raw()).and_then(|next| {
                let stat = self.top.stat(Place::Pinned(&next))?;
                Ok((next, stat.kind == Kind::Directory && stat.ino == dir.ino))
            });
            match opened {
                Ok((next, true)) => handle = Arc::new(next),
                Ok((_, false)) => {
                    self.incomplete.store(true, Ordering::Relaxed);
                    self.report(&problem::CHANGED, About::Directory(&dir), "another directory stands here now");
                    stack.truncate(at);
                    return false;
                }
                Err(e) => {
                    self.io_trouble(About::Directory(&dir), "opening the directory again", &e);
                    stack.truncate(at);
                    return false;
                }
            }
            if at >= keep_from {
                frame.handle = Some(handle.clone());
            }
            at += 1;
        }
        true
    }
}
