//! Network namespaces of a test's own.

use std::{fs, process::Command, thread};

use nix::sched::{CloneFlags, unshare};

/// Runs something in a network namespace of its own, where loopback is up and nobody else is.
///
/// # Panics
/// Without the rights for it, or if what it runs panics.
pub fn in_new_namespace<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let there = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test makes a network namespace: run it as root");
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
            assert!(up.expect("this test needs ip: install iproute2").success(), "loopback is not up");
            run()
        });
        there.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Sets a value of the calling thread's namespace, such as `net/ipv4/tcp_fastopen`.
///
/// # Panics
/// If the kernel refuses.
pub fn set(name: &str, value: &str) {
    let path = format!("/proc/sys/{name}");
    fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
}
