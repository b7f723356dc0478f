//! Tests of the volume file.
