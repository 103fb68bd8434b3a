//! `walden key add` and `walden key remove`.

use crate::confirm::Confirm;
use crate::context::{Ask, Context, ask_passphrase};
use clap::Args;
use serde::Serialize;
use std::collections::BTreeSet;
use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use walden::base::SlotName;
use walden::codec::keyslot::Unlock;
use walden::disk::SecretSource;
use walden::format::keyslot::SlotCost;
use walden::operate::{Exit, Failure};
use walden::repo::slots;

const ADD_HELP: &str = "\
Whoever holds one slot may add another: a passphrase for people, a key for a machine, a command that asks something that \
keeps secrets. Done again with the same secret, it completes what was interrupted.

Examples:
  walden key add ops                                             # asks for a passphrase, twice
  walden key add ops --new-passphrase-file /root/passphrase
  walden key add host2 --new-key-file /etc/walden/key            # made by `walden key generate`
  walden key add age --new-key-command 'age -d -i /etc/walden/age.txt /etc/walden/key.age'
  walden key add kms --new-key-command \"aws kms decrypt --ciphertext-blob fileb:///etc/walden/key.kms \\
    --query Plaintext --output text | base64 -d\"";

const REMOVE_HELP: &str = "\
A new key epoch is made, which is not given to the slots that go, and then they go: nothing stored from then on opens with \
them. What was stored before stays readable to whoever kept a copy of the slot (in a versioned bucket, the old object is \
one) and its secret, until `walden key move` has sealed it anew and `walden key destroy` has ended the old epochs; copies \
of old objects stay readable even then. A receiver that was started with a slot that goes is to be started with another: it \
cannot read what is stored from then on. Done again, it completes what was interrupted. The last slot is never removed.

Example:
  walden key remove bob --yes";

/// Add a key slot: another passphrase or key that opens the repository
#[derive(Debug, Args)]
#[command(after_help = ADD_HELP)]
pub struct Add {
    /// The slot's name
    name: SlotName,
    #[command(flatten)]
    secret: NewSecret,
}

/// Where the new secret comes from.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct NewSecret {
    /// A file that holds the new passphrase, readable by you alone
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    /// A shell command that prints the new passphrase
    #[arg(long, value_name = "COMMAND")]
    new_passphrase_command: Option<String>,
    /// A file that holds the new key
    #[arg(long, value_name = "FILE")]
    new_key_file: Option<PathBuf>,
    /// A shell command that prints the new key
    #[arg(long, value_name = "COMMAND")]
    new_key_command: Option<String>,
}

impl NewSecret {
    fn source(&self) -> Option<SecretSource> {
        let passphrase = self.new_passphrase_file.clone().map(SecretSource::PassphraseFile);
        let passphrase =
            passphrase.or_else(|| self.new_passphrase_command.clone().map(SecretSource::PassphraseCommand));
        let key = self.new_key_file.clone().map(SecretSource::KeyFile);
        passphrase.or(key).or_else(|| self.new_key_command.clone().map(SecretSource::KeyCommand))
    }

    async fn unlock(&self, name: &SlotName) -> Result<Unlock, Failure> {
        let (source, what) = (self.source(), format!("key slot {name}"));
        let read = move || match source {
            Some(source) => source.unlock().map_err(Failure::from),
            None if !stderr().is_terminal() => Err(Failure::new(
                Exit::Usage,
                format!("what is to open {what} is missing, and there is no terminal to ask at"),
            )
            .hint(
                "give --new-passphrase-file, --new-passphrase-command, --new-key-file or --new-key-command",
            )),
            None => ask_passphrase(Ask::Twice, &what),
        };
        tokio::task::spawn_blocking(read).await.map_err(|error| Failure::new(Exit::Internal, error))?
    }
}

#[derive(Serialize)]
struct AddedSlot {
    slot: String,
    created: bool,
    epochs_sealed: Vec<u32>,
    epochs: Vec<u32>,
}

impl Add {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let repository = context.repository_to_write().await?;
        let unlock = self.secret.unlock(&self.name).await?;
        let added = slots::add(&repository, &self.name, &unlock, SlotCost::DEFAULT).await?;
        let done = AddedSlot {
            slot: self.name.to_string(),
            created: added.created,
            epochs_sealed: added.sealed,
            epochs: added.opens,
        };
        context.output.result(&done, |done| {
            let epochs = list(&done.epochs);
            let opens = format!("it opens key epochs {epochs}: that was tried with what was given");
            match (done.created, done.epochs_sealed.is_empty()) {
                (true, _) => format!("added key slot {}; {opens}", done.slot),
                (false, false) => format!(
                    "key slot {} was there already; key epochs {} were sealed to it; {opens}",
                    done.slot,
                    list(&done.epochs_sealed)
                ),
                (false, true) => {
                    format!("key slot {} was there already, and this opens it; {opens}", done.slot)
                }
            }
        })
    }
}

/// Remove key slots, and rotate so that nothing new opens with them
#[derive(Debug, Args)]
#[command(after_help = REMOVE_HELP)]
pub struct Remove {
    /// The slots' names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<SlotName>,
    #[command(flatten)]
    confirm: Confirm,
}

#[derive(Serialize)]
struct RemovedSlots {
    removed: Vec<String>,
    objects: u64,
    /// The epoch that leaves them out; none when the newest did already.
    epoch: Option<u32>,
    slots: Vec<String>,
}

impl Remove {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Result<(), Failure> {
        let repository = context.repository_to_write().await?;
        let names: BTreeSet<SlotName> = self.names.iter().cloned().collect();
        let shown = names.iter().map(SlotName::as_str).collect::<Vec<_>>().join(", ");
        let question = format!("Remove key slot {shown} of {}?", repository.store().url());
        self.confirm.ask(&question, names.first().map_or("yes", SlotName::as_str))?;
        let removed = slots::remove(&repository, &names).await?;
        let done = RemovedSlots {
            removed: names.iter().map(ToString::to_string).collect(),
            objects: removed.objects,
            epoch: removed.rotated.as_ref().map(|rotated| rotated.epoch),
            slots: removed.left.iter().map(ToString::to_string).collect(),
        };
        context.output.result(&done, |done| {
            let epoch = match done.epoch {
                Some(epoch) => format!("key epoch {epoch} was made, for {}", done.slots.join(", ")),
                None => "the newest key epoch had not been given to it".to_owned(),
            };
            format!(
                "removed key slot {shown} ({} objects); {epoch}\n\
                 What was stored until now stays readable to whoever kept a copy of the slot and its secret; a bucket \
                 with versions keeps such a copy.\n\
                 `walden key move` seals it anew, and `walden key destroy` ends the epochs before.",
                done.objects
            )
        })
    }
}

/// `1, 2, 3`.
fn list(numbers: &[u32]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
