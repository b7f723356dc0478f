//! Tests of the decision: documented cases, the console's policy, and a naive reading of the rules as the oracle.
