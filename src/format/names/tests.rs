//! Tests of entry names.
