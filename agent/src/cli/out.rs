//! What verbs print.

use std::{
    io::{ErrorKind, IsTerminal, Write, stderr, stdout},
    ops::ControlFlow,
};

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

    /// Whether somebody looks at a screen.
    pub(super) fn is_terminal(&self) -> bool {
        stdout().is_terminal()
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
        self.more(text).map(drop)
    }

    /// Prints text as it is, and says whether the reader wants more.
    pub(super) fn more(&self, text: &str) -> Result<ControlFlow<()>> {
        let mut out = stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
            written => written.map(ControlFlow::Continue).context("can't write to standard output"),
        }
    }

    /// Says why a verb failed, on standard error.
    pub(super) fn failed(&self, error: &anyhow::Error) {
        let text = if self.json {
            serde_json::to_string(&api::Error { error: format!("{error:#}") }).unwrap_or_default()
        } else {
            format!("{} {error:#}", ERR.paint("error:", Style::new().red().bold()))
        };
        self.complain(&(text + "\n"));
    }

    /// Prints text on standard error.
    pub(super) fn complain(&self, text: &str) {
        // If that fails, there is nobody left to tell.
        let _ = stderr().write_all(text.as_bytes());
    }
}

/// Colours of what is printed: on a terminal, unless NO_COLOR says no.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ink(Stream);

/// For standard output.
pub(super) const OUT: Ink = Ink(Stream::Stdout);
/// For standard error.
pub(super) const ERR: Ink = Ink(Stream::Stderr);

impl Ink {
    pub(super) fn good(self, text: &str) -> String {
        self.paint(text, Style::new().green())
    }

    pub(super) fn doubtful(self, text: &str) -> String {
        self.paint(text, Style::new().yellow())
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.paint(text, Style::new().red())
    }

    pub(super) fn dim(self, text: &str) -> String {
        self.paint(text, Style::new().dimmed())
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.paint(text, Style::new().bold())
    }

    fn paint(self, text: &str, style: Style) -> String {
        text.if_supports_color(self.0, |text| text.style(style)).to_string()
    }
}
