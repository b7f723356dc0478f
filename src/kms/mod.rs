//! The key service: AWS's KMS protocol over keys that never leave it. Its rooms: `material`.

pub mod material;
