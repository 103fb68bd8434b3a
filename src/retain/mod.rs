//! What is kept and what is removed.

pub mod gc;
