//! Tests of the header slot.
