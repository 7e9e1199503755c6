use std::borrow::Cow;

use super::Response;
use crate::frame::status;

/// Why a call failed.
#[derive(Debug)]
pub struct Error {
    status: u32,
    text: Cow<'static, str>,
    not_executed: bool,
    idempotent: bool,
    /// The connection is at fault, so another agent may do better.
    broken: bool,
    /// The call went by the lane.
    by_lane: bool,
    response: Option<Box<Response>>,
}

impl Error {
    pub(super) fn new(status: u32, text: impl Into<Cow<'static, str>>) -> Self {
        Self { status, text: text.into(), not_executed: false, idempotent: false, broken: false, by_lane: false, response: None }
    }

    /// The connection ended, or could not be had.
    pub(super) fn broken(text: impl Into<Cow<'static, str>>, not_executed: bool) -> Self {
        Self { broken: true, not_executed, ..Self::new(status::REMOTING, text) }
    }

    pub(super) fn late() -> Self {
        Self::new(status::TIMEOUT, "no answer in time")
    }

    pub(super) fn not_executed(mut self, not_executed: bool) -> Self {
        self.not_executed = not_executed;
        self
    }

    pub(super) fn of_call(mut self, idempotent: bool) -> Self {
        self.idempotent = idempotent;
        self
    }

    pub(super) fn by_lane(mut self, by_lane: bool) -> Self {
        self.by_lane = by_lane;
        self
    }

    pub(super) fn with_response(mut self, response: Response) -> Self {
        self.response = Some(Box::new(response));
        self
    }

    /// Whether sending the call to another agent is safe, and may help.
    pub(super) fn may_go_elsewhere(&self) -> bool {
        self.not_executed || self.broken && self.idempotent
    }

    /// Whether sending the call to the same agent is safe, by the stream connection, and may help.
    pub(super) fn may_go_by_stream(&self) -> bool {
        self.by_lane && self.status == status::REMOTING && self.is_safe_to_retry()
    }

    /// One of [`crate::frame::status`], or a code of the service's own.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.status
    }

    /// What went wrong, for people.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the call certainly was not executed.
    #[must_use]
    pub fn is_not_executed(&self) -> bool {
        self.not_executed
    }

    /// Whether the call may be sent again without being executed twice, or with no harm if it is.
    #[must_use]
    pub fn is_safe_to_retry(&self) -> bool {
        self.not_executed || self.idempotent
    }

    /// The answer, if it is one that says this: an error may have metadata and a body.
    #[must_use]
    pub fn into_response(self) -> Option<Response> {
        self.response.map(|response| *response)
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (status {})", self.text, self.status)
    }
}

impl std::error::Error for Error {}
