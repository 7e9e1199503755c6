//! Each check, on made-up machines.

use std::{fs, path::Path};

use tempfile::TempDir;

use super::{Check, Outcome, Roots, all, namespaces};
use crate::config::Namespaces;

/// A machine on which every file is as it should be.
struct Machine {
    folder: TempDir,
}

impl Machine {
    fn good() -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap() };
        machine.write("proc/sys/kernel/osrelease", "5.15.0-91-generic\n");
        machine.write("proc/self/status", "Name:\tmoa\nCapInh:\t0000000000000000\nCapEff:\t000001ffffffffff\n");
        machine.write("proc/sys/net/core/bpf_jit_enable", "1\n");
        machine.write("proc/sys/net/core/somaxconn", "4096\n");
        machine.write("proc/self/limits", &limits("1024", "524288"));
        machine.write("sys/kernel/btf/vmlinux", "");
        machine.mounts(&["bpf /sys/fs/bpf bpf rw 0 0"]);
        machine
    }

    /// Cgroup2 is an ordinary folder here, to which nothing can be attached.
    fn mounts(&self, others: &[&str]) {
        let cgroup = self.folder.path().join("cgroup");
        fs::create_dir_all(&cgroup).unwrap();
        let own = format!("cgroup2 {} cgroup2 rw 0 0", cgroup.display());
        self.write("proc/self/mounts", &[&[own.as_str()], others].concat().join("\n"));
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn without(self, path: &str) -> Self {
        fs::remove_file(self.folder.path().join(path)).unwrap();
        self
    }

    fn with(self, path: &str, text: &str) -> Self {
        self.write(path, text);
        self
    }

    fn roots(&self) -> Roots {
        let root = self.folder.path();
        Roots { proc: root.join("proc"), sys: root.join("sys") }
    }

    fn check(&self, name: &str) -> Check {
        all(&self.roots()).into_iter().find(|check| check.name == name).unwrap()
    }
}

fn limits(soft: &str, hard: &str) -> String {
    format!(
        "Limit                     Soft Limit           Hard Limit           Units     \nMax open files            {soft:<20} {hard:<20} files     \n"
    )
}

#[track_caller]
fn expect(machine: &Machine, name: &str, outcome: Outcome, found: &str, mend: Option<&str>) {
    let check = machine.check(name);
    assert_eq!(check.outcome, outcome, "{check:?}");
    assert!(check.found.contains(found), "{check:?}");
    match mend {
        Some(mend) => assert!(check.mend.as_ref().is_some_and(|text| text.contains(mend)), "{check:?}"),
        None => assert_eq!(check.mend, None),
    }
}

#[test]
fn all_is_well_on_a_good_machine() {
    let machine = Machine::good();
    for name in ["kernel version", "capabilities", "cgroup2", "bpffs", "BTF", "BPF JIT", "open files", "listen backlog"] {
        expect(&machine, name, Outcome::Ok, "", None);
    }
}

#[test]
fn old_and_unreadable_kernels() {
    let release = |text: &str| Machine::good().with("proc/sys/kernel/osrelease", text);
    expect(&release("5.14.21-150500\n"), "kernel version", Outcome::Fail, "5.14.21", Some("5.15"));
    expect(&release("4.19.0\n"), "kernel version", Outcome::Fail, "4.19.0", Some("5.15"));
    expect(&release("6.1.0-9-amd64\n"), "kernel version", Outcome::Ok, "6.1.0", None);
    expect(&release("my own\n"), "kernel version", Outcome::Warn, "my own", Some("5.15"));
    let missing = Machine::good().without("proc/sys/kernel/osrelease");
    expect(&missing, "kernel version", Outcome::Fail, "cannot be read", Some("mount /proc"));
}

#[test]
fn missing_capabilities_are_named() {
    let effective = |mask: &str| Machine::good().with("proc/self/status", &format!("CapEff:\t{mask}\n"));
    let none = effective("0000000000000000");
    expect(&none, "capabilities", Outcome::Warn, "CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF", Some("root"));
    expect(&effective("000000c000000000"), "capabilities", Outcome::Warn, "without CAP_NET_ADMIN:", Some("grant CAP_NET_ADMIN"));
    expect(&effective("000000c000001000"), "capabilities", Outcome::Ok, "CAP_BPF", None);
    expect(&effective("0000000000200000"), "capabilities", Outcome::Ok, "CAP_SYS_ADMIN", None);
    expect(&effective("zz"), "capabilities", Outcome::Warn, "CapEff", Some("/proc"));
}

#[test]
fn namespaces_need_a_right_and_a_folder() {
    let machine = Machine::good();
    machine.write("netns/pod-a", "");
    machine.write("netns/other", "");
    let folder = machine.folder.path().join("netns");
    let config = Namespaces { folder: Some(folder), include: vec!["pod-*".into()], ..Namespaces::default() };
    let found = |machine: &Machine, config: &Namespaces| {
        let check = namespaces(&machine.roots(), config);
        (check.outcome, check.found)
    };
    let (outcome, text) = found(&machine, &config);
    assert!(outcome == Outcome::Ok && text.ends_with("netns has 1 files that count"), "{text}");
    let absent = Namespaces { folder: Some("/nowhere/netns".into()), ..config.clone() };
    assert_eq!(found(&machine, &absent), (Outcome::Warn, "/nowhere/netns isn't there".into()));
    let listed = Namespaces { folder: None, paths: vec!["/a".into()], ..config.clone() };
    assert_eq!(found(&machine, &listed), (Outcome::Ok, "1 files are listed".into()));
    let machine = machine.with("proc/self/status", "CapEff:\t000000c000001000\n");
    assert_eq!(found(&machine, &config).0, Outcome::Fail);
}

#[test]
fn missing_mounts() {
    let without_bpf = Machine::good();
    without_bpf.mounts(&["bpf /elsewhere bpf rw 0 0"]);
    expect(&without_bpf, "bpffs", Outcome::Warn, "not mounted", Some("mount -t bpf"));
    let without_cgroup = Machine::good().with("proc/self/mounts", "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n");
    expect(&without_cgroup, "cgroup2", Outcome::Warn, "not mounted", Some("mount -t cgroup2"));
    let blind = Machine::good().without("proc/self/mounts");
    expect(&blind, "cgroup2", Outcome::Warn, "cannot be read", Some("/proc"));
    expect(&blind, "bpffs", Outcome::Warn, "cannot be read", Some("/proc"));
}

#[test]
fn the_usual_place_of_cgroup2_is_taken_first() {
    let machine = Machine::good();
    machine.mounts(&["none /sys/fs/cgroup/unified cgroup2 rw 0 0"]);
    expect(&machine, "cgroup2", Outcome::Ok, "at /sys/fs/cgroup/unified", None);
}

#[test]
fn no_btf_and_no_jit() {
    expect(&Machine::good().without("sys/kernel/btf/vmlinux"), "BTF", Outcome::Warn, "vmlinux", Some("CONFIG_DEBUG_INFO_BTF"));
    let jit = |text: &str| Machine::good().with("proc/sys/net/core/bpf_jit_enable", text);
    expect(&jit("0\n"), "BPF JIT", Outcome::Warn, "interpreted", Some("bpf_jit_enable=1"));
    expect(&jit("2\n"), "BPF JIT", Outcome::Warn, "log", Some("bpf_jit_enable=1"));
    let missing = Machine::good().without("proc/sys/net/core/bpf_jit_enable");
    expect(&missing, "BPF JIT", Outcome::Warn, "cannot be read", Some("CONFIG_BPF_JIT"));
}

#[test]
fn small_limits() {
    let files = |soft: &str, hard: &str| Machine::good().with("proc/self/limits", &limits(soft, hard));
    expect(&files("1024", "4096"), "open files", Outcome::Warn, "hard 4096", Some("LimitNOFILE"));
    expect(&files("64", "64"), "open files", Outcome::Fail, "hard 64", Some("LimitNOFILE"));
    expect(&files("1024", "unlimited"), "open files", Outcome::Ok, "hard unlimited", None);
    let backlog = Machine::good().with("proc/sys/net/core/somaxconn", "128\n");
    expect(&backlog, "listen backlog", Outcome::Warn, "128", Some("somaxconn=4096"));
}

#[test]
fn attaching_is_tried_for_real() {
    let check = Machine::good().check("attaching");
    assert_eq!(check.outcome, Outcome::Fail, "{check:?}");
    assert!(check.found.contains("is not a folder of cgroup2"), "{check:?}");
    let without = Machine::good().with("proc/self/mounts", "").check("attaching");
    assert_eq!((without.outcome, without.found.as_str()), (Outcome::Warn, "not tried, for want of: cgroup2"));
}

#[test]
fn attaching_works_here_and_leaves_nothing() {
    let check = all(&Roots::default()).into_iter().find(|check| check.name == "attaching").unwrap();
    assert_eq!(check.outcome, Outcome::Ok, "needs root, cgroup2 and cargo xtask build: {check:?}");
    let cgroups = super::super::cgroup::find(&Roots::default()).unwrap();
    let prefix = format!("moa-doctor-{}-", std::process::id());
    let is_ours = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(&prefix);
    // Another test may be trying at this moment.
    let left = || fs::read_dir(Path::new(&cgroups)).unwrap().flatten().filter(is_ours).count();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while left() > 0 && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(left(), 0);
}

#[test]
fn every_check_has_a_stable_shape_as_json() {
    let check = Machine::good().without("sys/kernel/btf/vmlinux").check("BTF");
    let json = serde_json::to_value(&check).unwrap();
    assert_eq!(json["name"], "BTF");
    assert_eq!(json["outcome"], "warn");
    assert!(json["found"].is_string() && json["mend"].is_string());
}
