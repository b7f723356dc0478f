//! The only module with `unsafe`: system calls that no safe wrapper offers. Knows no policy.
#![allow(unsafe_code)]
