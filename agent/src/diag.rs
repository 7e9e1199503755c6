//! What the kernel knows of a TCP socket (`man 7 sock_diag`): how much it holds that its application has not read, and the cgroup
//! that it was made in.

use std::{
    cell::Cell,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt, socket,
            sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike},
    },
};

// From the kernel's `linux/netlink.h`, `linux/sock_diag.h` and `linux/inet_diag.h`, in the widths that the messages have.
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_SKMEMINFO: u16 = 7;
const INET_DIAG_CGROUP_ID: u16 = 21;
const INET_DIAG_NOCOOKIE: [u8; 8] = [0xff; 8];
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;

/// `struct nlmsghdr`, with which every message begins.
const HEADER: u32 = 16;
/// The device that connections within the machine come by, the first of every namespace. Sockets that are bound to none are
/// found by any.
const LOOPBACK: u32 = 1;
/// `struct inet_diag_req_v2`, a look-up.
const LOOKUP: u32 = 56;
/// `struct inet_diag_msg`, what is said of a socket before its attributes.
const SOCKET: usize = 72;
/// Where in it the bytes are that came by TCP and wait (`idiag_rqueue`).
const RECEIVE_QUEUE: usize = 56;
/// States in which a socket is nobody's, or not the other end of a connection: `TCP_SYN_SENT`, `TCP_TIME_WAIT`,
/// `TCP_NEW_SYN_RECV`.
const NOT_CONNECTED: [u8; 3] = [2, 6, 12];
/// Far more than the kernel says of a socket when it is asked for one attribute.
const REPLY_MAX: usize = 4096;
/// The kernel answers before it takes the next call: this only bounds the wait if it did not.
const TIMEOUT_MS: i64 = 100;
/// Replies to earlier look-ups, and interruptions, that are passed over before a look-up fails.
const PASSED_OVER_MAX: usize = 16;

/// Looks up TCP sockets in one network namespace.
#[derive(Debug)]
pub(crate) struct Diag {
    socket: OwnedFd,
    /// Of the last request. A cell, because two threads at once would take each other's replies.
    sequence: Cell<u32>,
}

impl Diag {
    /// For the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel cannot look up TCP sockets, or the process may not open another file.
    pub(crate) fn open() -> io::Result<Self> {
        Self::over(new_socket()?)
    }

    /// For the network namespace in which a socket was made by [`new_socket`].
    ///
    /// # Errors
    /// The kernel cannot look up TCP sockets.
    pub(crate) fn over(socket: OwnedFd) -> io::Result<Self> {
        let diag = Self { socket, sequence: Cell::new(0) };
        diag.check()?;
        Ok(diag)
    }

    /// What the socket at `local` with the peer `remote` has received and its application has not read: bytes of memory, with
    /// the kernel's overhead. None: there is no such socket, or it is closed and the kernel keeps only its address.
    ///
    /// A socket that is bound to a network device is found if that is the loopback, or if the scope of an IPv6 address names it.
    ///
    /// # Errors
    /// One address is IPv4 and the other is not, or the kernel does not answer as it should.
    pub(crate) fn receive_bytes(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
        Ok(self.unread(local, remote)?.map(|unread| unread.memory))
    }

    /// As [`Diag::receive_bytes`], with what of it came by TCP.
    ///
    /// # Errors
    /// As for [`Diag::receive_bytes`].
    pub(crate) fn unread(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Unread>> {
        Ok(self.find(local, remote)?.and_then(|found| found.unread))
    }

    /// The number of the cgroup in which the socket at `local` with the peer `remote` was made. None: there is no such socket.
    ///
    /// # Errors
    /// As for [`Diag::receive_bytes`], or the kernel does not say such numbers.
    pub(crate) fn cgroup(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u64>> {
        const ADVICE: &str = "the kernel does not say the cgroups of sockets: use 5.8 or later, with CONFIG_SOCK_CGROUP_DATA";
        match self.find(local, remote)? {
            None => Ok(None),
            Some(found) if NOT_CONNECTED.contains(&found.state) => Ok(None),
            Some(found) => found.cgroup.map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, ADVICE)),
        }
    }

    fn find(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Found>> {
        let tuple = (plain(local), plain(remote));
        let device = device(local).max(device(remote)).max(LOOPBACK);
        let sequence = self.send(NLM_F_REQUEST, &lookup(tuple, device)?)?;
        match self.receive(sequence)? {
            // For a connection that is not there, the kernel names the listener that would take it.
            Reply::Socket(found) => Ok(Some(found).filter(|found| found.tuple == tuple)),
            Reply::Refused(Errno::ENOENT) => Ok(None),
            Reply::Refused(errno) => Err(errno.into()),
            Reply::Done => Err(invalid("names no socket")),
        }
    }

    /// A kernel without `tcp_diag` answers a look-up as if the socket were absent, but does not list sockets, not even none.
    fn check(&self) -> io::Result<()> {
        const ADVICE: &str = "the kernel cannot look up TCP sockets: load tcp_diag (CONFIG_INET_DIAG, CONFIG_INET_TCP_DIAG)";
        let mut none = vec![AF_INET, IPPROTO_TCP];
        none.resize(LOOKUP as usize, 0);
        let sequence = self.send(NLM_F_REQUEST | NLM_F_DUMP, &none)?;
        match self.receive(sequence)? {
            Reply::Done => Ok(()),
            Reply::Refused(Errno::ENOENT) => Err(io::Error::new(io::ErrorKind::Unsupported, ADVICE)),
            Reply::Refused(errno) => Err(errno.into()),
            Reply::Socket(_) => Err(invalid("names a socket that was not asked for")),
        }
    }

    /// Sends a request, and gives the number that its reply will have.
    fn send(&self, flags: u16, lookup: &[u8]) -> io::Result<u32> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        let mut message = Vec::with_capacity((HEADER + LOOKUP) as usize);
        message.extend((HEADER + LOOKUP).to_ne_bytes());
        message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(lookup);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(sequence)
    }

    fn receive(&self, sequence: u32) -> io::Result<Reply> {
        let mut buffer = [0; REPLY_MAX];
        for _ in 0..PASSED_OVER_MAX {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => match Reply::parse(buffer.get(..length).unwrap_or_default(), sequence)? {
                    Some(reply) => return Ok(reply),
                    None => continue,
                },
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel did not answer the look-up of a socket"))
    }
}

/// A socket that asks about the network namespace of the calling thread.
///
/// # Errors
/// The process may not open another file.
pub(crate) fn new_socket() -> io::Result<OwnedFd> {
    let protocol = SockProtocol::NetlinkSockDiag;
    let socket = socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
    // No process can send to a netlink socket that is connected to the kernel.
    connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(TIMEOUT_MS))?;
    Ok(socket)
}

/// An own address and the peer's, as [`plain`] makes them.
type Tuple = (SocketAddr, SocketAddr);

#[derive(Debug)]
enum Reply {
    Socket(Found),
    Done,
    Refused(Errno),
}

#[derive(Debug)]
struct Found {
    tuple: Tuple,
    state: u8,
    cgroup: Option<u64>,
    /// None: the kernel keeps little more than the address, of a socket that is closed or not open yet.
    unread: Option<Unread>,
}

/// What a socket has received and its application has not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unread {
    /// Bytes of memory, with the kernel's overhead.
    pub(crate) memory: u32,
    /// Bytes that came by TCP, without it; the end of the stream counts as one.
    pub(crate) by_tcp: u32,
}

impl Reply {
    /// None: the reply to another request.
    fn parse(message: &[u8], sequence: u32) -> io::Result<Option<Self>> {
        let length = u32::from_ne_bytes(array(message, 0)?) as usize;
        if u32::from_ne_bytes(array(message, 8)?) != sequence {
            return Ok(None);
        }
        let body = message.get(HEADER as usize..length).ok_or_else(|| invalid("is cut short"))?;
        match u16::from_ne_bytes(array(message, 4)?) {
            SOCK_DIAG_BY_FAMILY => Found::parse(body).map(|found| Some(Self::Socket(found))),
            NLMSG_ERROR | NLMSG_DONE => match i32::from_ne_bytes(array(body, 0)?) {
                0 => Ok(Some(Self::Done)),
                error => Ok(Some(Self::Refused(Errno::from_raw(error.wrapping_neg())))),
            },
            _ => Err(invalid("is of an unknown type")),
        }
    }
}

impl Found {
    fn parse(body: &[u8]) -> io::Result<Self> {
        let address = |ip, port| Ok::<_, io::Error>(SocketAddr::new(ip_at(body, ip)?, u16::from_be_bytes(array(body, port)?)));
        let attributes = body.get(SOCKET..).ok_or_else(|| invalid("is cut short"))?;
        // The first of its numbers (SK_MEMINFO_RMEM_ALLOC).
        let memory = attribute(attributes, INET_DIAG_SKMEMINFO)?.map(|memory| array(memory, 0)).transpose()?;
        let by_tcp = u32::from_ne_bytes(array(body, RECEIVE_QUEUE)?);
        let unread = memory.map(|memory| Unread { memory: u32::from_ne_bytes(memory), by_tcp });
        let [state] = array(body, 1)?;
        let cgroup = attribute(attributes, INET_DIAG_CGROUP_ID)?.map(|cgroup| array(cgroup, 0)).transpose()?;
        let tuple = (plain(address(8, 4)?), plain(address(24, 6)?));
        Ok(Self { tuple, state, cgroup: cgroup.map(u64::from_ne_bytes), unread })
    }
}

/// The value of an attribute.
fn attribute(mut rest: &[u8], wanted: u16) -> io::Result<Option<&[u8]>> {
    while !rest.is_empty() {
        let length = usize::from(u16::from_ne_bytes(array(rest, 0)?));
        let value = rest.get(4..length).ok_or_else(|| invalid("has an attribute of a wrong length"))?;
        if u16::from_ne_bytes(array(rest, 2)?) == wanted {
            return Ok(Some(value));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(None)
}

/// The `struct inet_diag_req_v2` that asks for the memory of one socket.
fn lookup((local, remote): Tuple, device: u32) -> io::Result<Vec<u8>> {
    let family = match (local, remote) {
        (SocketAddr::V4(_), SocketAddr::V4(_)) => AF_INET,
        (SocketAddr::V6(_), SocketAddr::V6(_)) => AF_INET6,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket has both addresses in one family")),
    };
    let mut lookup = Vec::with_capacity(LOOKUP as usize);
    lookup.extend([family, IPPROTO_TCP, 1 << (INET_DIAG_SKMEMINFO - 1), 0]);
    // In any state.
    lookup.extend([0xff; 4]);
    lookup.extend(local.port().to_be_bytes());
    lookup.extend(remote.port().to_be_bytes());
    lookup.extend(ip_bytes(local.ip()));
    lookup.extend(ip_bytes(remote.ip()));
    lookup.extend(device.to_ne_bytes());
    lookup.extend(INET_DIAG_NOCOOKIE);
    Ok(lookup)
}

/// As the kernel compares addresses: an IPv4 address within IPv6 is the IPv4 one, and a device is not part of it.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The device that an address is meant for, 0 for any.
fn device(address: SocketAddr) -> u32 {
    if let SocketAddr::V6(address) = address { address.scope_id() } else { 0 }
}

fn ip_bytes(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            bytes
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn ip_at(socket: &[u8], at: usize) -> io::Result<IpAddr> {
    match socket.first() {
        Some(&AF_INET) => array::<4>(socket, at).map(IpAddr::from),
        Some(&AF_INET6) => array::<16>(socket, at).map(IpAddr::from),
        _ => Err(invalid("is of an unknown address family")),
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> io::Result<[u8; N]> {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).copied().ok_or_else(|| invalid("is cut short"))
}

fn invalid(how: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the kernel's answer to the look-up of a socket {how}"))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        thread,
        time::{Duration, Instant},
    };

    use nix::{
        sched::{CloneFlags, unshare},
        sys::socket::sockopt::BindToDevice,
    };
    use proptest::prelude::*;

    use super::*;

    /// A connection to a listener at this address, and its end that was accepted.
    fn pair(listen: &str, connect: &str) -> (TcpListener, TcpStream, TcpStream) {
        let listener = TcpListener::bind((listen, 0)).unwrap();
        let client = TcpStream::connect((connect, listener.local_addr().unwrap().port())).unwrap();
        let (server, _) = listener.accept().unwrap();
        (listener, client, server)
    }

    fn held(diag: &Diag, socket: &TcpStream) -> Option<u32> {
        diag.receive_bytes(socket.local_addr().unwrap(), socket.peer_addr().unwrap()).unwrap()
    }

    fn wait_for(mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !condition() {
            assert!(Instant::now() < deadline, "waited in vain");
            thread::yield_now();
        }
    }

    #[test]
    fn tells_what_is_unread_of_each_end() {
        let diag = Diag::open().unwrap();
        for (listen, connect) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1"), ("::", "::ffff:127.0.0.1")] {
            let (_listener, mut client, mut server) = pair(listen, connect);
            assert_eq!((held(&diag, &client), held(&diag, &server)), (Some(0), Some(0)), "{connect}");
            client.write_all(&[7; 1000]).unwrap();
            wait_for(|| held(&diag, &server) > Some(1000));
            assert_eq!(held(&diag, &client), Some(0), "{connect}");
            server.read_exact(&mut [0; 1000]).unwrap();
            assert_eq!(held(&diag, &server), Some(0), "{connect}");
        }
    }

    #[test]
    fn tells_what_came_by_tcp_and_that_the_stream_has_ended() {
        let diag = Diag::open().unwrap();
        let (_listener, client, mut server) = pair("127.0.0.1", "127.0.0.1");
        let unread = || diag.unread(client.local_addr().unwrap(), client.peer_addr().unwrap()).unwrap().unwrap();
        server.write_all(&[7; 1000]).unwrap();
        wait_for(|| unread().by_tcp == 1000);
        (&client).read_exact(&mut [0; 1000]).unwrap();
        assert_eq!(unread(), Unread { memory: 0, by_tcp: 0 });
        drop(server);
        wait_for(|| unread().by_tcp == 1);
        assert!(unread().memory > 0);
    }

    #[test]
    fn finds_a_socket_by_either_form_of_its_addresses() {
        let mapped = |address: SocketAddr| match address.ip() {
            IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
            IpAddr::V6(_) => address,
        };
        let diag = Diag::open().unwrap();
        for (listen, connect) in [("127.0.0.1", "127.0.0.1"), ("::", "::ffff:127.0.0.1")] {
            let (_listener, client, _server) = pair(listen, connect);
            let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            for local in [plain(local), mapped(local)] {
                for remote in [plain(remote), mapped(remote)] {
                    assert_eq!(diag.receive_bytes(local, remote).unwrap(), Some(0), "{local} {remote}");
                }
            }
        }
    }

    #[test]
    fn knows_absent_sockets() {
        let diag = Diag::open().unwrap();
        let (listener, client, server) = pair("127.0.0.1", "127.0.0.1");
        let (listening, nobody) = (listener.local_addr().unwrap(), SocketAddr::from(([127, 0, 0, 9], 9)));
        assert_eq!(diag.receive_bytes(nobody, listening).unwrap(), None);
        assert_eq!(diag.receive_bytes(listening, nobody).unwrap(), None, "the listener is not it");
        let other = "[::1]:9".parse().unwrap();
        assert_eq!(diag.receive_bytes(listening, other).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        drop((client, server));
        let entry = format!("0100007F:{:04X} 0100007F:{:04X} 06", local.port(), remote.port());
        wait_for(|| fs::read_to_string("/proc/net/tcp").unwrap().contains(&entry));
        assert_eq!(diag.receive_bytes(local, remote).unwrap(), None, "it is in TIME_WAIT");
    }

    #[test]
    fn finds_a_socket_that_is_bound_to_the_loopback() {
        let diag = Diag::open().unwrap();
        for (family, address) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
            let (_listener, client, _server) = pair(family, address);
            setsockopt(&client, BindToDevice, &"lo".into()).unwrap();
            assert_eq!(held(&diag, &client), Some(0));
        }
    }

    #[test]
    fn knows_the_cgroup_that_a_socket_was_made_in() {
        let diag = Diag::open().unwrap();
        let (_listener, client, server) = pair("127.0.0.1", "127.0.0.1");
        let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let own = diag.cgroup(local, remote).unwrap().unwrap();
        assert_eq!(diag.cgroup(remote, local).unwrap(), Some(own), "both were made by this process");
        drop(server);
        drop(client);
        wait_for(|| diag.cgroup(local, remote).unwrap().is_none());
    }

    #[test]
    fn stays_in_the_namespace_where_it_was_opened() {
        let (_listener, client, _server) = pair("127.0.0.1", "127.0.0.1");
        thread::scope(|scope| {
            let elsewhere = scope.spawn(|| {
                let here = Diag::open().unwrap();
                unshare(CloneFlags::CLONE_NEWNET).expect("this test makes a network namespace: run it as root");
                (held(&here, &client), held(&Diag::open().unwrap(), &client))
            });
            assert_eq!(elsewhere.join().unwrap(), (Some(0), None));
        });
    }

    #[test]
    fn passes_over_replies_to_earlier_requests() {
        let diag = Diag::open().unwrap();
        let (_listener, client, _server) = pair("127.0.0.1", "127.0.0.1");
        let absent = SocketAddr::from(([127, 0, 0, 9], 9));
        let stale = diag.send(NLM_F_REQUEST, &lookup((absent, absent), 0).unwrap()).unwrap();
        assert_eq!(held(&diag, &client), Some(0));
        assert_eq!(diag.receive(stale).unwrap_err().kind(), io::ErrorKind::TimedOut, "and does not wait for ever");
    }

    proptest! {
        #[test]
        fn survives_any_reply(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), sound in any::<bool>()) {
            if let (true, Ok(length), Some(header)) = (sound, u32::try_from(bytes.len()), bytes.first_chunk_mut::<17>()) {
                header[..4].copy_from_slice(&length.to_ne_bytes());
                header[4..12].copy_from_slice(&[20, 0, 0, 0, 1, 0, 0, 0]);
                header[16] = AF_INET;
            }
            let _ = Reply::parse(&bytes, 1);
        }
    }
}
