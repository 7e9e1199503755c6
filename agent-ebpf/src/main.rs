//! The kernel programs: one file a hook, over the maps of `maps.rs`.
//!
//! They shorten paths that the agent has decided, and decide nothing themselves: without them every call has the same
//! answer, only later. `agent-common` has the types that they share with the agent.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod address;
mod atomic;
mod calls;
mod connect;
mod count;
mod diverted;
mod established;
mod frame;
mod lane;
mod legs;
mod maps;
mod peername;
mod request;
mod response;
mod sock;
mod trace;
mod words;

/// What a program that panicked would run; the verifier accepts none that can.
#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel lets only programs under a GPL-compatible licence call some of its helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// Lets the agent refuse an object that was built for other maps.
#[unsafe(link_section = "moa_schema")]
#[unsafe(no_mangle)]
static SCHEMA: [u8; 16] = agent_common::SCHEMA_MARK;
