//! What applications use: a [`Client`] that calls, and a [`Server`] that offers services.
//!
//! Both speak the frame protocol with an agent, the local one first, and do no more than the protocol needs. Which
//! instance serves a call, how often it is tried, who may call whom: all that is the agent's. `docs/sdk.md` says what is
//! guaranteed.
//!
//! A connection has one task, which moves bytes between the socket and what is known of the connection; calls only
//! change what is known, and wake the task once for all that begin before it runs. What goes by the lane is sent by who calls
//! or answers; the task only reads it.

mod address;
mod backoff;
mod body;
mod client;
mod driver;
mod error;
mod frames;
mod handshake;
mod incoming;
mod lane;
mod lane_calls;
mod lane_socket;
mod link;
mod made;
mod options;
mod pipe;
mod pool;
mod request;
mod sending;
mod serve;
mod server;
mod state;
mod taken;

pub use address::{Address, BadAddress};
pub use body::{Body, Sender, Stopped};
pub use client::{Client, ClientBuilder};
pub use error::Error;
pub use incoming::Incoming;
pub use request::{Metadata, Request, Response};
pub use serve::{Call, Over, Reply};
pub use server::{Handle, Server, ServerBuilder, StartError};
