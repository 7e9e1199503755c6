//! Packages of Debian.

use std::{collections::BTreeSet, path::Path, process::Command};

use anyhow::{Result, bail};
use nix::unistd::geteuid;

use super::progress::Progress;
use crate::{
    command::{self, show},
    place::program,
};

/// Services that come with packages, and are started by them where systemd runs.
const SERVICES: [(&str, &str); 4] =
    [("redis-server", "redis-server"), ("haproxy", "haproxy"), ("nginx-light", "nginx"), ("nutcracker", "nutcracker")];

/// Installs packages, in one go. None of their services stays running.
pub(super) fn install(progress: &Progress, packages: &[&str]) -> Result<()> {
    let packages: BTreeSet<&str> = packages.iter().copied().collect();
    let names = packages.iter().copied().collect::<Vec<_>>().join(" ");
    if program("apt-get").is_none() {
        bail!("this system has no apt-get: install what Debian calls {names} with its own package manager, then try again");
    }
    let Some(rights) = Rights::find() else {
        bail!("installing needs root: run `sudo apt-get install --yes --no-install-recommends {names}`, then try again");
    };
    // An old list of packages is often good enough, and no list is told by the next step.
    if let Err(error) = progress.run("reading the list of packages", rights.apt_get().args(["update", "--quiet"])) {
        println!("setup: {error}");
    }
    let mut apt = rights.apt_get();
    apt.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(&packages);
    progress.run(&format!("installing {names}"), &mut apt)?;
    stop_services(progress, rights, &packages)
}

/// How we may install.
#[derive(Debug, Clone, Copy)]
enum Rights {
    Root,
    Sudo,
}

impl Rights {
    fn find() -> Option<Self> {
        if geteuid().is_root() {
            return Some(Self::Root);
        }
        command::printed(Command::new("sudo").args(["-n", "true"])).map(|_| Self::Sudo)
    }

    /// In runlevel 1 a package starts no service.
    fn apt_get(self) -> Command {
        let mut command = self.command("env");
        command.args(["RUNLEVEL=1", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        command
    }

    fn command(self, name: &str) -> Command {
        match self {
            Self::Root => Command::new(name),
            Self::Sudo => {
                let mut sudo = Command::new("sudo");
                sudo.args(["-n", name]);
                sudo
            }
        }
    }
}

/// Systemd knows no runlevel: what it has started by now is stopped, and does not start again.
fn stop_services(progress: &Progress, rights: Rights, packages: &BTreeSet<&str>) -> Result<()> {
    if !Path::new("/run/systemd/system").is_dir() {
        return Ok(());
    }
    for (_, service) in SERVICES.iter().filter(|(package, _)| packages.contains(package)) {
        let mut stop = rights.command("systemctl");
        stop.args(["disable", "--now", service]);
        if let Err(error) =
            progress.run(&format!("stopping the service {service}, which only its program is needed of"), &mut stop)
        {
            println!("setup: {} failed, go on without: {error}", show(&stop));
        }
    }
    Ok(())
}
