//! The contract on k8s.
