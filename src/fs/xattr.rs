//! Extended attributes: sealed `user.` and `trusted.`, passed through `security.` and ACLs, refused others.
//! Knows which key an object's attributes hang on.

use std::sync::Arc;

use super::handles::is;
use super::nodes::{AbsentXattrs, Node};
use super::{Caller, Fs, FsError, Ino, Result, random16};
use crate::crypto::random;
use crate::format::small::{OBJECT_ID_XATTR, TRUSTED_OBJECT_ID_XATTR, XattrCodec};
use crate::store::{Kind, Store};
use crate::sys::process::supplementary_groups;

const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
pub(super) const CAPABILITY: &[u8] = b"security.capability";
const SELINUX: &[u8] = b"security.selinux";
const S_ISGID: u32 = 0o2000;

/// What becomes of an attribute.
#[derive(Debug, PartialEq, Eq)]
enum Treatment {
    Seal,
    /// The kernel has to understand it.
    Pass,
}

fn treatment(name: &[u8]) -> Result<Treatment> {
    let sealed = [&b"user."[..], b"trusted."].into_iter().find(|p| name.starts_with(p));
    if let Some(prefix) = sealed {
        if name.len() == prefix.len() { Err(FsError::Errno(libc::EINVAL)) } else { Ok(Treatment::Seal) }
    } else if passes(name) {
        Ok(Treatment::Pass)
    } else {
        Err(FsError::Errno(libc::EOPNOTSUPP))
    }
}

fn passes(name: &[u8]) -> bool {
    name.starts_with(b"security.") || name == ACL_ACCESS || name == ACL_DEFAULT
}

const ENODATA: FsError = FsError::Errno(libc::ENODATA);

impl<S: Store> Fs<S> {
    /// The codec of a node's sealed attributes; `None` where it has none yet and `create` is false.
    fn xattr_codec(&self, node: &Arc<Node<S>>, create: bool) -> Result<Option<XattrCodec>> {
        if node.kind != Kind::File {
            return self.object_codec(node, create);
        }
        let used = self.content_of(node, create)?;
        if create {
            // Before the header: a truncation that comes between keeps it.
            used.content.keep_header(true);
            self.charge(node);
        }
        let codec = used.content.xattrs(create);
        self.changed(node, &used.content);
        codec.map_err(|e| self.noted(node, e))
    }

    fn object_codec(&self, node: &Arc<Node<S>>, create: bool) -> Result<Option<XattrCodec>> {
        let name = if node.kind == Kind::Directory { OBJECT_ID_XATTR } else { TRUSTED_OBJECT_ID_XATTR };
        let read = || match self.stored_xattr(node, name) {
            Ok(id) => <[u8; 16]>::try_from(id).map(Some).map_err(|_| self.damaged(node, "xattr-id")),
            Err(FsError::Errno(libc::ENODATA)) => Ok(None),
            Err(e) => Err(e),
        };
        let mut id = read()?;
        if id.is_none() && create {
            let fresh = random16();
            let set = |place: crate::store::Place<'_, S::Handle>| {
                match self.store.set_xattr(place, name, &fresh, libc::XATTR_CREATE) {
                    // Somebody was faster: theirs counts.
                    Err(e) if is(&e, libc::EEXIST) => Ok(()),
                    result => result,
                }
            };
            let set = self.with_place(node, set);
            node.absent_xattrs.changed();
            set?;
            id = read()?;
        }
        Ok(id.map(|id| XattrCodec::for_object(&self.config.keys.xattrs, id)))
    }

    /// An attribute as the store has it. Listing and setting need it where the caller needs no read permission.
    fn stored_xattr(&self, node: &Arc<Node<S>>, name: &[u8]) -> Result<Vec<u8>> {
        self.with_place(node, |place| self.as_owner(place, 0o400, || self.store.get_xattr(place, name)))
    }

    /// Names of the sealed attributes as the store has them. Asks for no key.
    fn sealed_names(&self, node: &Arc<Node<S>>) -> Result<Vec<Vec<u8>>> {
        let mut names = self.stored_names(node)?;
        names.retain(|n| XattrCodec::is_encoded(n));
        Ok(names)
    }

    /// Names of all attributes as the store has them.
    pub(super) fn stored_names(&self, node: &Arc<Node<S>>) -> Result<Vec<Vec<u8>>> {
        if node.absent_xattrs.known(AbsentXattrs::ALL) {
            return Ok(Vec::new());
        }
        let before = node.absent_xattrs.before();
        let names = self.with_place(node, |place| self.store.list_xattrs(place))?;
        if names.is_empty() && self.config.exclusive {
            node.absent_xattrs.learn(before, AbsentXattrs::ALL);
        }
        Ok(names)
    }

    /// An attribute that the store has under its own name.
    pub(super) fn passed_xattr(&self, node: &Arc<Node<S>>, name: &[u8]) -> Result<Vec<u8>> {
        let which = if name == CAPABILITY { AbsentXattrs::CAPABILITY } else { AbsentXattrs::ALL };
        if node.absent_xattrs.known(which) {
            return Err(ENODATA);
        }
        let before = node.absent_xattrs.before();
        let value = self.with_place(node, |place| self.store.get_xattr(place, name));
        if which == AbsentXattrs::CAPABILITY
            && matches!(value, Err(FsError::Errno(libc::ENODATA)))
            && self.config.exclusive
        {
            node.absent_xattrs.learn(before, which);
        }
        value
    }

    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let node = self.node(ino)?;
        if treatment(name)? == Treatment::Pass {
            return match self.passed_xattr(&node, name) {
                // With SELinux the kernel answers by itself. Without, this is what keeps ls(1) from asking for each file.
                Err(FsError::Errno(libc::ENODATA)) if name == SELINUX => Err(FsError::Errno(libc::EOPNOTSUPP)),
                result => result,
            };
        }
        if self.sealed_names(&node)?.is_empty() {
            return Err(ENODATA);
        }
        let codec = self.xattr_codec(&node, false)?.ok_or(ENODATA)?;
        let backing = codec.name(name);
        let sealed = self.stored_xattr(&node, &backing)?;
        match codec.open(&backing, &sealed) {
            Ok((found, value)) if found == name => Ok(value),
            _ => Err(self.damaged(&node, "xattr-auth")),
        }
    }

    pub fn setxattr(&self, by: &Caller, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        self.writable()?;
        let node = self.node(ino)?;
        if treatment(name)? == Treatment::Pass {
            let set = self.with_place(&node, |place| self.store.set_xattr(place, name, value, flags));
            node.absent_xattrs.changed();
            set?;
            if name == ACL_ACCESS {
                node.forget_mode();
                self.drop_group_id(by, &node)?;
            }
            return Ok(());
        }
        let codec = self.xattr_codec(&node, true)?.ok_or(FsError::Errno(libc::EIO))?;
        let backing = codec.name(name);
        let sealed = codec.seal(name, value, random::array());
        self.charge(&node);
        let set = self.with_place(&node, |place| self.store.set_xattr(place, &backing, &sealed, flags));
        node.absent_xattrs.changed();
        set
    }

    /// Whoever sets an ACL without being in the file's group loses the set-group-id bit. The kernel leaves that to us,
    /// since we run with more privileges than the caller.
    fn drop_group_id(&self, by: &Caller, node: &Arc<Node<S>>) -> Result<()> {
        if by.uid == 0 {
            return Ok(());
        }
        let st = self.stat_node(node)?;
        if st.mode & S_ISGID == 0 || st.gid == by.gid {
            return Ok(());
        }
        // A caller that is gone is in no group.
        if supplementary_groups(by.pid).is_ok_and(|groups| groups.contains(&st.gid)) {
            return Ok(());
        }
        node.set_mode(st.mode & !S_ISGID);
        self.with_place(node, |place| self.store.chmod(place, st.mode & !S_ISGID))
    }

    /// Full names. Attributes that do not open are left out and reported.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let node = self.node(ino)?;
        let all = self.stored_names(&node)?;
        let (sealed, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|n| XattrCodec::is_encoded(n));
        let mut names: Vec<Vec<u8>> = others.into_iter().filter(|n| passes(n)).collect();
        if sealed.is_empty() {
            return Ok(names);
        }
        let codec = self.xattr_codec(&node, false)?;
        for backing in sealed {
            let value = match self.stored_xattr(&node, &backing) {
                Ok(value) => value,
                // Removed meanwhile.
                Err(FsError::Errno(libc::ENODATA)) => continue,
                Err(e) => return Err(e),
            };
            match codec.as_ref().map(|c| c.open(&backing, &value)) {
                Some(Ok((name, _))) => names.push(name),
                _ => {
                    let path = || self.backing_path(&node);
                    self.reports.error_once("xattr-auth", &backing, path, "an extended attribute does not open");
                }
            }
        }
        Ok(names)
    }

    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.writable()?;
        let node = self.node(ino)?;
        if treatment(name)? == Treatment::Pass {
            return self.with_place(&node, |place| self.store.remove_xattr(place, name));
        }
        if self.sealed_names(&node)?.is_empty() {
            return Err(ENODATA);
        }
        let codec = self.xattr_codec(&node, false)?.ok_or(ENODATA)?;
        let backing = codec.name(name);
        self.with_place(&node, |place| self.store.remove_xattr(place, &backing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces() {
        for name in ["user.x", "trusted.overlay.opaque", "user.envelopefs.id", "user.\u{e9}"] {
            assert_eq!(treatment(name.as_bytes()).ok(), Some(Treatment::Seal), "{name}");
        }
        for name in ["security.selinux", "security.capability", "system.posix_acl_access", "system.posix_acl_default"] {
            assert_eq!(treatment(name.as_bytes()).ok(), Some(Treatment::Pass), "{name}");
        }
        for name in ["user.", "trusted."] {
            assert_eq!(treatment(name.as_bytes()).unwrap_err().errno(), libc::EINVAL, "{name}");
        }
        for name in ["system.nfs4_acl", "btrfs.compression", "", "x"] {
            assert_eq!(treatment(name.as_bytes()).unwrap_err().errno(), libc::EOPNOTSUPP, "{name}");
        }
    }
}
