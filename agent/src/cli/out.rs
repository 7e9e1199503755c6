//! What verbs print.

use std::io::{ErrorKind, IsTerminal, Write, stderr, stdout};

use anyhow::{Context, Result};
use owo_colors::{OwoColorize, Stream, Style};
use serde::Serialize;

use crate::api;

/// Standard output, as text or as JSON.
#[derive(Debug, Clone, Copy)]
pub(super) struct Out {
    pub(super) json: bool,
}

impl Out {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints data: as JSON if that was asked for, else as `text` makes it.
    pub(super) fn show<T: Serialize>(&self, data: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
        if self.json { self.data(data) } else { self.text(&text(data)) }
    }

    /// Prints data as JSON.
    pub(super) fn data(&self, data: &impl Serialize) -> Result<()> {
        let json = if stdout().is_terminal() { serde_json::to_string_pretty(data) } else { serde_json::to_string(data) };
        self.text(&(json.context("can't write JSON")? + "\n"))
    }

    /// Prints text as it is. A reader that has seen enough is no failure.
    pub(super) fn text(&self, text: &str) -> Result<()> {
        let mut out = stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            written => written.context("can't write to standard output"),
        }
    }

    /// Says why a verb failed, on standard error.
    pub(super) fn failed(&self, error: &anyhow::Error) {
        let text = if self.json {
            serde_json::to_string(&api::Error { error: format!("{error:#}") }).unwrap_or_default()
        } else {
            let label = "error:".if_supports_color(Stream::Stderr, |text| text.style(Style::new().red().bold())).to_string();
            format!("{label} {error:#}")
        };
        // There is nobody left to tell.
        let _ = writeln!(stderr(), "{text}");
    }
}

/// Text in a colour, on a terminal.
pub(super) fn paint(text: &str, style: Style) -> String {
    text.if_supports_color(Stream::Stdout, |text| text.style(style)).to_string()
}

pub(super) fn good(text: &str) -> String {
    paint(text, Style::new().green())
}

pub(super) fn bad(text: &str) -> String {
    paint(text, Style::new().red())
}

pub(super) fn doubtful(text: &str) -> String {
    paint(text, Style::new().yellow())
}

pub(super) fn dim(text: &str) -> String {
    paint(text, Style::new().dimmed())
}

pub(super) fn bold(text: &str) -> String {
    paint(text, Style::new().bold())
}
