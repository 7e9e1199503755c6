//! Protocols as plain code, without sockets: RESP commands and replies, and MOA's JSON envelope.

pub mod envelope;
pub mod reply;
pub mod resp;
