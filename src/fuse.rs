//! The FUSE adapter: decode, call `fs`, reply. The only importer of `fuser`; holds no logic.
