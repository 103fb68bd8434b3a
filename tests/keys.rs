//! Keys: slots that come and go, epochs that are made, moved away from and destroyed, with a stop at every request, beside everything
//! else that walden does.

mod common;

#[path = "keys/chain.rs"]
mod chain;
#[path = "keys/epochs.rs"]
mod epochs;
#[path = "keys/hostile.rs"]
mod hostile;
#[path = "keys/server.rs"]
mod server;
#[path = "keys/slots.rs"]
mod slots;
