//! What the machine gives: ports, files, memory of a process.

use std::{
    collections::HashMap,
    fs,
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::{LazyLock, Mutex},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rand::RngExt;

use crate::wait::PATIENCE;

/// Below the range that the kernel takes local ports from (32768–60999): nobody is given one of these by chance, so
/// that a server can go away and come back, and a client that dials an absent server never connects to itself.
const PORTS: std::ops::RangeInclusive<u16> = 23_000..=23_999;

/// The ports that this process has given. For other test programs that run at the same time, a socket of UDP holds each of
/// them: nobody else wants those, and the kernel gives them back whatever happens.
static GIVEN: LazyLock<Mutex<HashMap<u16, UdpSocket>>> = LazyLock::new(Mutex::default);

/// An address on loopback that nobody listens at, given to no other test.
pub fn free_address() -> SocketAddr {
    let mut given = GIVEN.lock().expect("the set of ports");
    for _ in 0..10_000 {
        let port = rand::rng().random_range(PORTS);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        // Asked by connecting: a socket bound for a trial may live on for a moment in a process that forks meanwhile.
        if let Ok(hold) = UdpSocket::bind(address)
            && TcpStream::connect(address).is_err()
        {
            given.insert(port, hold);
            return address;
        }
    }
    panic!("no free port in {PORTS:?} on 127.0.0.1");
}

/// As [`free_address`], on IPv6's loopback.
pub fn free_address_v6() -> SocketAddr {
    SocketAddr::from((Ipv6Addr::LOCALHOST, free_address().port()))
}

/// Gives an address back that one of these gave.
pub fn release_address(address: SocketAddr) {
    GIVEN.lock().expect("the set of ports").remove(&address.port());
}

/// Raises this process's limit of open files to what it may have, and returns that.
pub fn raise_file_limit() -> u64 {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raising the limit of open files to the hard limit");
    }
    hard
}

/// One field of `/proc/PID/status` in KiB, such as `VmRSS`.
pub fn memory_kib(pid: u32, field: &str) -> u64 {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':')?.trim().strip_suffix("kB")?.trim().parse().ok())
        .unwrap_or_else(|| panic!("{path} has no {field} in kB"))
}

/// How many files a process has open.
pub fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// The status and the body of a GET by HTTP.
pub fn http(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("connecting to {address}: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").expect("sending a request");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("reading an answer");
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    (status.unwrap_or_else(|| panic!("no HTTP: {text}")), body.expect("a body"))
}
