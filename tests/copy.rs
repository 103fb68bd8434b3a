//! Copies into another repository with other keys: equal in every restore, stopped at every request, beside everything that moves
//! their source, and taken over by a receiver.

mod common;

#[path = "copy/bed.rs"]
mod bed;
#[path = "copy/clusters.rs"]
mod clusters;
#[path = "copy/cost.rs"]
mod cost;
#[path = "copy/damage.rs"]
mod damage;
#[path = "copy/history.rs"]
mod history;
#[path = "copy/odd_sources.rs"]
mod odd_sources;
#[path = "copy/server.rs"]
mod server;
#[path = "copy/stops.rs"]
mod stops;
