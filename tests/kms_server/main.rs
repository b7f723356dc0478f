//! The key service and its cryptography against what others wrote: Python's `cryptography`, boto3, the aws CLI, aws-sdk-kms,
//! the kernel. One module a theme. A tool that is not installed is a loud skip, as in `tests/providers`.

// Harness and servers are shared with other test binaries; each needs its part.
#[allow(dead_code)]
#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code)]
#[path = "../providers/servers.rs"]
mod servers;

mod material;
mod python;
