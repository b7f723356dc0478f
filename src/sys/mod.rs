//! The only module with `unsafe`: system calls that no safe wrapper offers, and what belongs beside them. Knows no policy.
#![allow(unsafe_code)]

#[cfg(test)]
pub mod allocation;
pub mod cipher_memory;
pub mod daemon;
pub mod descriptor;
pub mod identity;
pub mod limits;
pub mod lock;
pub mod locked;
pub mod notify;
pub mod peer;
pub mod process;
