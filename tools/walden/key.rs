//! `walden key`: slots, epochs, and new keys.

mod epochs;
mod generate;
mod list;
mod slots;

use crate::context::Context;
use clap::Subcommand;
use walden::operate::Failure;

/// Manage the keys: who opens the repository, and what is stored under which secrets
#[derive(Debug, Subcommand)]
pub enum Key {
    List(list::List),
    Add(slots::Add),
    Remove(slots::Remove),
    Rotate(epochs::Rotate),
    Move(epochs::Move),
    Destroy(epochs::Destroy),
    Generate(generate::Generate),
}

impl Key {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        match self {
            Key::List(list) => list.run(context).await,
            Key::Add(add) => add.run(context).await,
            Key::Remove(remove) => remove.run(context).await,
            Key::Rotate(rotate) => rotate.run(context).await,
            Key::Move(moving) => moving.run(context).await,
            Key::Destroy(destroy) => destroy.run(context).await,
            Key::Generate(generate) => generate.run(context),
        }
    }
}
