//! The one contract of all CMK providers, run on real servers; one module a provider, each starting its own servers on
//! loopback. A server that is not installed is a loud skip; with ENVELOPEFS_TEST_REQUIRE_SERVERS=1 it is a failure.

mod contract;
mod fault;
// Shared with other test binaries; each needs its part.
#[allow(dead_code)]
mod own;
mod servers;
mod sigv4;

#[cfg(feature = "aws")]
mod aws;
#[cfg(feature = "k8s")]
mod k8s;
mod keyfile;
#[cfg(feature = "pkcs11")]
mod pkcs11;
#[cfg(feature = "vault")]
mod vault;
