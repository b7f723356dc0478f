//! The key service: who may do what with which key. Owns the protocol of the service; knows no files and no FUSE.

pub mod policy;
pub mod sigv4;
