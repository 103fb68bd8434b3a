//! Asking before what cannot be undone: `--yes`, or a person who types a word at the terminal.

use clap::Args;
use std::io::{IsTerminal, Write, stderr, stdin};
use walden::operate::{Exit, Failure};

/// Whether somebody has decided already.
#[derive(Debug, Clone, Copy, Args)]
pub struct Confirm {
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Confirm {
    /// Goes on if `--yes` was given, or `word` is typed in answer to `question`.
    pub fn ask(self, question: &str, word: &str) -> Result<(), Failure> {
        if self.yes { Ok(()) } else { ask(question, word, "--yes") }
    }
}

/// Goes on if `word` is typed in answer to `question`; `option` is what says so without a terminal.
pub fn ask(question: &str, word: &str, option: &str) -> Result<(), Failure> {
    if !stdin().is_terminal() || !stderr().is_terminal() {
        return Err(Failure::new(Exit::Usage, question).hint(format!(
            "nothing was done; {option} says that it is meant, where there is no terminal to ask at"
        )));
    }
    let mut err = stderr().lock();
    let asked = write!(err, "{question}\nType {word} to go on: ").and_then(|()| err.flush());
    asked.map_err(|error| Failure::new(Exit::Internal, format!("standard error: {error}")))?;
    let mut typed = String::new();
    stdin()
        .read_line(&mut typed)
        .map_err(|error| Failure::new(Exit::Usage, format!("standard input: {error}")))?;
    if typed.trim() == word {
        return Ok(());
    }
    Err(Failure::new(Exit::Usage, format!("{word} was not typed; nothing was done")))
}
