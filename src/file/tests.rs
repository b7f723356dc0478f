//! Tests of the file engine on the memory store.
