//! What stays and what goes: the retention policy, the plan it makes, and collection of what nothing refers to.

pub mod cluster;
pub mod delete;
pub mod expire;
pub mod gc;
mod leftovers;
mod lines;
pub mod mark;
pub mod pin;
pub mod plan;
pub mod policy;
mod rebuilt;
pub mod sweep;
