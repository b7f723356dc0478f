//! The contract on pkcs11.
