//! Real mounts on real key services: budgets, outages, revocation. One module a theme. A server that is not installed is a
//! loud skip, as in `tests/providers`.

#[path = "../common/mod.rs"]
mod common;
#[path = "../providers/fault.rs"]
mod fault;
#[path = "../providers/servers.rs"]
mod servers;

mod aws;
mod budgets;
mod outage;
mod planted;
mod revocation;
