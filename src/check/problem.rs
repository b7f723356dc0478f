//! What a check finds: stable code words, how bad each is, what to do about it. Knows no volume and prints nothing.

use std::borrow::Cow;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Something that was stored cannot be had as it was.
    Damage,
    /// Not verified: no key, no permission, or changed while it was looked at. It may be good.
    Unchecked,
    /// What a crash left behind: harmless, and the next mount copes with it.
    Leftover,
    /// Worth knowing; nothing is lost.
    Warning,
}

impl Severity {
    /// Stable word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Damage => "damage",
            Self::Unchecked => "unchecked",
            Self::Leftover => "leftover",
            Self::Warning => "warning",
        }
    }
}

/// A kind of finding. `word` is stable, and the one in log lines of a mount where that meets the same thing.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    pub word: &'static str,
    pub severity: Severity,
    /// What it means.
    pub meaning: &'static str,
    /// What to do.
    pub advice: &'static str,
}

macro_rules! codes {
    ($($name:ident = $word:literal $severity:ident $meaning:literal $advice:literal;)*) => {
        $(pub const $name: Code = Code { word: $word, severity: Severity::$severity, meaning: $meaning, advice: $advice };)*
        /// Every code, as the documents list them.
        pub const CODES: &[&Code] = &[$(&$name),*];
    };
}

codes! {
    VOLUME_FILE = "volume-file" Damage
        "the volume file is missing or malformed"
        "restore envelopefs.toml from a copy; without one, recover content with: envelopefs export --cmk URI CIPHERDIR DEST";
    LAYOUT = "layout" Damage
        "a part of the encrypted directory is missing, or is not the kind of object that it must be"
        "restore it from a backup; an empty overflow/ may be made by hand (mode 0700) where it was lost";
    DIR_ID = "dir-id" Damage
        "the directory's id is missing, not authentic, or that of another directory; nothing in it can be reached by name"
        "--repair puts it back where its names prove it; otherwise restore the link .envelopefs.dir from a backup";
    NAME_AUTH = "name-auth" Damage
        "the entry does not belong in this directory: moved below, forged, or its name was damaged; mounts hide it"
        "move it back where it came from, or restore it from a backup; --repair moves it to quarantine";
    COMPANION = "companion" Damage
        "the full form of a long name is missing or is another name's; the entry opens by its name but is not listed"
        "restore the companion link (the entry's name and .name) from a backup, or rename the file through a mount by its known name";
    OTHER_FILESYSTEM = "other-filesystem" Damage
        "another file system, or a part of this one, is mounted here; what is below was not checked"
        "unmount it and check again";
    WRONG_KIND = "wrong-kind" Damage
        "an object of another kind (link, FIFO, device, directory) stands where a file or a link of envelopefs must be"
        "restore it from a backup; it was put here by somebody";
    IMPOSSIBLE_LENGTH = "impossible-length" Damage
        "no writer leaves a file of this length; it does not open"
        "restore the file from a backup; its whole blocks may be good";
    HEADER_MISSING = "header-missing" Damage
        "the file has a size but no header, and so no key"
        "restore the file from a backup; --repair moves it to quarantine";
    HEADER = "header" Damage
        "no header slot is intact and authentic, or the file belongs to another volume; it does not open"
        "restore the file from a backup; --repair moves it to quarantine";
    WRAPPED_KEY = "wrapped-key" Damage
        "a CMK that is there does not open the wrapped key in the header: altered, or from another file or volume"
        "make sure that the CMK is complete (all versions of a keyfile); then restore the file from a backup";
    TRUNCATED = "truncated-below-floor" Damage
        "the file is shorter than it is known to have been; it does not open"
        "restore the file from a backup";
    SEALED_SIZE = "sealed-size" Damage
        "the file is sealed with another size; it does not open"
        "restore the file from a backup";
    BLOCK_AUTH = "block-auth" Damage
        "blocks are not what was written at their place"
        "restore the file, or these blocks of it, from a backup; all other blocks are good";
    HOLE = "hole-below-floor" Damage
        "blocks that were written are gone (zeros)"
        "restore the file, or these blocks of it, from a backup; all other blocks are good";
    BACKING_IO = "backing-io" Damage
        "the storage below answers with an I/O error"
        "look at the kernel log and the disk's health; copy what is readable away, replace the disk, restore the rest";
    XATTR_AUTH = "xattr-auth" Damage
        "an extended attribute is not what was written"
        "set it again through a mount, or restore the object from a backup";
    XATTR_ID = "xattr-id" Damage
        "the id that the object's extended attributes hang on is missing or malformed"
        "restore the attribute from a backup, or set the attributes again through a mount";
    SYMLINK_AUTH = "symlink-auth" Damage
        "the symbolic link's target is not what was written, or the link was put in another object's place"
        "restore the link from a backup; --repair moves one that itself does not open to quarantine";
    OVERFLOW_MISSING = "overflow-missing" Damage
        "the file in overflow/ that holds the link's long target is missing"
        "restore that file from a backup, or make the link again through a mount";
    KEY = "key" Unchecked
        "the key cannot be had now: no such CMK is configured, it refuses, or it cannot be reached"
        "name the CMK with --cmk, or make it available; then check again";
    UNREADABLE = "unreadable" Unchecked
        "no permission to read it"
        "check as root, or as the owner with permission to read";
    CHANGED = "changed-meanwhile" Unchecked
        "it changed or went away while it was checked, although nobody has the volume mounted"
        "find out what works in the encrypted directory (a sync tool, a backup), stop it, and check again";
    TEMPORARY = "temporary" Leftover
        "a temporary object of an operation that a crash interrupted"
        "nothing; --repair moves it to quarantine";
    COMPANION_ORPHAN = "companion-orphan" Leftover
        "the full form of a long name whose entry is gone"
        "nothing; --repair moves it to quarantine";
    OVERFLOW_ORPHAN = "overflow-orphan" Leftover
        "a long link target that no link leads to"
        "nothing; --repair moves it to quarantine";
    NEVER_SYNCED = "never-synced" Leftover
        "a crash came before anything of the file was durable; it reads as empty"
        "nothing; --repair sets its length to 0 where all of it is zeros, as the next writer would in any case";
    NOT_SETTLED = "size-not-settled" Leftover
        "the file was being written when the mount ended; its size is in its last block"
        "nothing; --repair settles it, as the next writer would";
    HEADER_SLOT = "header-slot" Warning
        "one of the file's two header slots is damaged, the other one serves; a crash while it was written does that, too"
        "--repair rewrites it from the good one; look for the cause (disk, tampering) where there was no crash";
    CMK_SLOT = "cmk-slot" Warning
        "the copy of the key under one CMK does not open, though another CMK's does: without that one, the file does not open"
        "restore the file from a backup, or copy its content to a new file through a mount; look for the cause";
    DIR_ID_TWICE = "dir-id-twice" Warning
        "two directories have the same id: one is a copy made below, and entries can be moved between them unnoticed"
        "make the copy through a mount instead (cp -a in the mount), and remove the one that was made below";
    SPECIAL = "special" Warning
        "FIFOs, sockets or devices: nothing in them is encrypted or authenticated"
        "make sure that they were made through a mount, and do not stand in a file's place";
    FOREIGN = "foreign" Warning
        "an object that is not envelopefs's"
        "move it out of the encrypted directory; mounts do not show it";
    XATTR_FOREIGN = "xattr-foreign" Warning
        "an unencrypted extended attribute that was set below; mounts do not show it"
        "remove it with setfattr -x, if nothing needs it";
    UNKNOWN_CMK = "unknown-cmk" Warning
        "the header, or the directory, names only CMKs that the volume file does not list"
        "make sure that these CMKs are kept; the file opens with one of them only";
    PLACE = "cipherdir" Warning
        "the place where the volume lies is not as it should be"
        "see the description";
}

/// What became of a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mended {
    /// Nothing can be done here, or nobody asked.
    No,
    /// A dry run: this would be done.
    Would(String),
    Done(String),
    Failed(String),
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub code: &'static Code,
    /// As the mount shows it, with a leading `/`; `None` where the name is not known.
    pub path: Option<Vec<u8>>,
    /// Below the CIPHERDIR.
    pub backing: Vec<u8>,
    /// First and last block concerned.
    pub blocks: Option<(u64, u64)>,
    /// What exactly was found. For people.
    pub detail: Cow<'static, str>,
    pub mended: Mended,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_words_are_unique_and_plain() {
        let mut words: Vec<&str> = CODES.iter().map(|code| code.word).collect();
        words.sort_unstable();
        let count = words.len();
        words.dedup();
        assert_eq!(words.len(), count);
        assert!(words.iter().all(|word| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
    }
}
