//! Whether a port can be listened on, and who is in the way.

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener},
    path::Path,
};

use anyhow::{Result, bail};

/// Fails if the port on 127.0.0.1 is taken, and says by whom; `or_else` says what to do but stop it.
pub(super) fn ensure_free(port: u16, or_else: &str) -> Result<()> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let who = holder(port).unwrap_or_else(|| "another process".to_owned());
            bail!("port {port} is taken by {who}: stop it, or {or_else}")
        }
        Err(error) => bail!("port {port} cannot be listened on: {error}; {or_else}"),
    }
}

/// The wanted port if it is free, else any that is.
pub(super) fn free_or_any(wanted: Option<u16>) -> Result<u16> {
    let bind = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|listener| listener.local_addr());
    let address = wanted.and_then(|port| bind(port).ok()).map_or_else(|| bind(0), Ok)?;
    Ok(address.port())
}

/// The process that listens on the port, as far as we may see.
fn holder(port: u16) -> Option<String> {
    let inode =
        ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().find_map(|table| listener(&fs::read_to_string(table).ok()?, port))?;
    let socket = format!("socket:[{inode}]");
    let mut pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.find(|pid| holds(&Path::new("/proc").join(pid.to_string()), Path::new(&socket)))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("{} (pid {pid})", name.trim()))
}

fn holds(process: &Path, socket: &Path) -> bool {
    let mut files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    files.any(|file| fs::read_link(file.path()).is_ok_and(|to| to == socket))
}

/// The inode of the socket that listens on the port, from a table of the kernel's sockets.
fn listener(table: &str, port: u16) -> Option<String> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (_, local_port) = columns.get(1)?.rsplit_once(':')?;
        let is_it = u16::from_str_radix(local_port, 16) == Ok(port) && columns.get(3) == Some(&LISTEN);
        is_it.then(|| columns.get(9).map(|inode| (*inode).to_owned()))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_in_the_way_is_named() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let error = ensure_free(port, "wait").unwrap_err().to_string();
        assert!(error.contains(&format!("port {port} is taken by")) && error.contains("or wait"), "{error}");
        assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
        assert_ne!(free_or_any(Some(port)).unwrap(), port);
        drop(listener);
        ensure_free(port, "wait").unwrap();
    }

    #[test]
    fn only_listeners_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                     0: 0100007F:32C8 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 11 1 0\n\
                     1: 0100007F:32C8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22 1 0\n";
        assert_eq!(listener(table, 13000).as_deref(), Some("22"));
        assert_eq!(listener(table, 13001), None);
    }
}
