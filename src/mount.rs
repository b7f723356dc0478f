//! The composition root of a mount: store, keys, filesystem, session, background commit, daemon.
