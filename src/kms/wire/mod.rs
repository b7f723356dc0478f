//! The protocol's words: shapes of requests, errors, pages, times. Knows no keys and decides nothing.

pub mod catalogue;
pub mod error;
pub mod input;
pub mod page;
pub mod pattern;
pub mod shape;
pub mod time;

pub use error::ApiError;
pub use input::Input;
