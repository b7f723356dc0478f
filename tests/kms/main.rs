//! Real mounts on real key services: budgets, outages, revocation. One module a theme. A server that is not installed is a
//! loud skip, as in `tests/providers`.

// Harness and servers are shared with other test binaries; each needs its part.
#[allow(dead_code)]
#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code)]
#[path = "../providers/fault.rs"]
mod fault;
#[allow(dead_code)]
#[path = "../providers/own.rs"]
mod own;
#[allow(dead_code)]
#[path = "../providers/servers.rs"]
mod servers;
#[allow(dead_code)]
#[path = "../providers/sigv4.rs"]
mod sigv4;

mod aws;
mod budgets;
mod check;
mod offline;
mod outage;
mod planted;
mod revocation;
