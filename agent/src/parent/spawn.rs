//! How the agent's process begins: started by its parent, and bound to its life.
#![expect(unsafe_code, reason = "a descriptor is inherited by its number")]

use std::{
    env,
    ffi::OsString,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::{Child, Command},
};

use nix::{
    sys::{
        prctl,
        signal::Signal,
        socket::{getsockopt, sockopt::PeerCredentials},
    },
    unistd::getppid,
};

use super::{channel::Channel, client::Parent, run::heeded};

/// By this number the child finds its end of the channel.
const FLAG: &str = "--parent-fd";
/// Descriptors below are those that every process has.
const FIRST_INHERITED: RawFd = 3;

/// Starts this very binary once more with the same arguments, as the child.
pub(super) fn start(channel: Channel) -> io::Result<Child> {
    channel.set_inherited(true)?;
    let number = channel.as_fd().as_raw_fd().to_string();
    let mut arguments: Vec<OsString> = env::args_os().collect();
    // Behind `--` there are no options.
    let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    arguments.splice(end..end, [FLAG.into(), number.into()]);
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = arguments.first() {
        command.arg0(name);
    }
    // In a group of its own a Ctrl-C at the terminal comes once: by way of the parent.
    command.args(arguments.get(1..).unwrap_or_default()).process_group(0).spawn()
}

/// Becomes the child of the parent that has started this process. To be called before anything else is opened.
///
/// # Errors
/// There is no parent.
pub(crate) fn adopt(number: RawFd) -> io::Result<Parent> {
    let channel = inherited(number)?;
    channel.set_inherited(false)?;
    // Whatever becomes of the parent, this process has no life of its own.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // It may have ended before that.
    let parent = getsockopt(&channel.as_fd(), PeerCredentials)?.pid();
    if getppid().as_raw() != parent {
        return Err(io::Error::other("the parent has ended"));
    }
    // The kernel has called it after the link that it was started by. It is nothing but a name.
    let _ = prctl::set_name(c"moa");
    // The parent has blocked what it takes, and this process inherited that.
    heeded().thread_unblock()?;
    Parent::new(channel)
}

fn inherited(number: RawFd) -> io::Result<Channel> {
    let is_socket =
        || fs::read_link(format!("/proc/self/fd/{number}")).is_ok_and(|link| link.to_string_lossy().starts_with("socket:"));
    if number < FIRST_INHERITED || !is_socket() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{FLAG} {number} is no parent: leave it out")));
    }
    // SAFETY: it is open, as was just seen, and nothing in this process has it: nothing was opened yet.
    Ok(Channel::over(unsafe { OwnedFd::from_raw_fd(number) }))
}
