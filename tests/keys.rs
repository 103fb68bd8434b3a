//! Keys: slots that come and go, epochs that are made, moved away from and destroyed, with a stop at every request, beside everything
//! else that walden does.

mod common;

#[path = "keys/epochs.rs"]
mod epochs;
#[path = "keys/server.rs"]
mod server;
#[path = "keys/slots.rs"]
mod slots;
