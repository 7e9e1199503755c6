//! One end of the way between the agent and its parent: packets with descriptors beside them.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    cmsg_space,
    io::{FdFlags, fcntl_getfd, fcntl_setfd, ioctl_fionbio},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
        sockopt::{Timeout, set_socket_timeout},
    },
};
use serde::Serialize;

use super::protocol::{BYTES_MAX, DESCRIPTORS_MAX};

/// One end. Nothing is in it but packets, so that nobody ever has a part of one.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

/// What was received.
#[derive(Debug, Default)]
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Channel {
    /// The end of the parent, which never waits, and that of the agent.
    pub(super) fn pair() -> io::Result<(Self, Self)> {
        let (parent, agent) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // An agent that is stopped reads nothing: its parent must not wait for it.
        ioctl_fionbio(&parent, true)?;
        Ok((Self(parent), Self(agent)))
    }

    pub(super) fn over(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Bounds how long sending and receiving may wait.
    pub(super) fn set_patience(&self, patience: Duration) -> io::Result<()> {
        set_socket_timeout(&self.0, Timeout::Recv, Some(patience))?;
        Ok(set_socket_timeout(&self.0, Timeout::Send, Some(patience))?)
    }

    /// Whether programs that this process starts have it.
    pub(super) fn set_inherited(&self, inherited: bool) -> io::Result<()> {
        let flags = fcntl_getfd(&self.0)?;
        let flags = if inherited { flags - FdFlags::CLOEXEC } else { flags | FdFlags::CLOEXEC };
        Ok(fcntl_setfd(&self.0, flags)?)
    }

    pub(super) fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > BYTES_MAX || descriptors.len() > DESCRIPTORS_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            beside.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut beside, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next packet; none if the other end is closed.
    pub(super) fn receive(&self) -> io::Result<Option<Packet>> {
        let mut bytes = vec![0; BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut beside, RecvFlags::CMSG_CLOEXEC)?;
        // Taken in any case, so that they are closed.
        let descriptors = beside.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let descriptors = descriptors.flatten().collect();
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet is longer than any may be"));
        }
        bytes.truncate(received.bytes);
        Ok((received.bytes > 0).then_some(Packet { bytes, descriptors }))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
