//! The contract on vault.
