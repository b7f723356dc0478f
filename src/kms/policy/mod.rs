//! Who may do what: policy documents, conditions, grants and the decision over them. Pure: knows no store, no network, no clock.
//!
//! The language is IAM's (IAM User Guide, "IAM JSON policy element reference" and "Policy evaluation logic") in the form that
//! AWS KMS gives it (Developer Guide, "Key policies", "Condition keys", "Grants"). Where the two leave something open, the
//! reading that allows less is taken: see [`condition`] for keys that nobody knows and variables that have no value.

mod condition;
pub mod context;
mod document;
mod evaluation;
pub mod grant;
mod json;
mod pattern;
mod principal;
pub(in crate::kms) mod values;

#[cfg(test)]
mod tests;

pub use context::{Context, KeyFacts};
pub use document::{Document, PolicyError};
pub use evaluation::{Decision, Request, Why, decide, decide_retire, locks_out};
pub use grant::{Constraints, Grant, GrantError, GrantTerms, Party};
pub use principal::Principal;
