//! The key service and its cryptography against what others wrote: Python's `cryptography`, boto3, the aws CLI, aws-sdk-kms,
//! the kernel. One module a theme. A tool that is not installed is a loud skip, as in `tests/providers`.
#![cfg(feature = "kms")]

// Harness and servers are shared with other test binaries; each needs its part.
#[allow(dead_code)]
#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code)]
#[path = "../providers/own.rs"]
mod own;
#[allow(dead_code)]
#[path = "../providers/servers.rs"]
mod servers;
#[allow(dead_code)]
#[path = "../providers/sigv4.rs"]
mod sigv4;

mod authorisation;
mod clients;
mod kill9;
mod material;
#[cfg(feature = "aws")]
mod network;
mod python;
mod storage;
