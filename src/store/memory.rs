//! The backing store in memory, for tests: a full directory tree with failure injection. Knows no encryption.
