//! The contract on aws.
