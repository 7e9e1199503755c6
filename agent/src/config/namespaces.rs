//! Who calls, by where it is: `[namespaces]` and `[cgroups]`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    CheckedService, Config,
    check::Check,
    key::KeyPath,
    problem::Finding,
    schema::{APPLICATION_BYTES_MAX, address_schema},
};
use crate::rules::Pattern;

/// Where `ip netns` keeps its files.
const EXAMPLE_FOLDER: &str = "/run/netns";

/// Network namespaces that the agent serves from inside: in each of them it listens for applications, and its services can be
/// called there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Namespaces {
    /// A folder with a file for each namespace, which is watched; it need not be there yet. `ip netns` and container runtimes
    /// that follow it use /run/netns, Docker /run/docker/netns. Without it, only `paths` count.
    #[schemars(example = EXAMPLE_FOLDER)]
    pub folder: Option<PathBuf>,
    /// Names of the folder's files that count, as patterns: `*` stands for anything.
    pub include: Vec<String>,
    /// Names of the folder's files that do not count, as patterns, even if they are included.
    pub exclude: Vec<String>,
    /// Further files of namespaces, such as /proc/4711/ns/net, which need not be there yet.
    #[schemars(extend("uniqueItems" = true))]
    pub paths: Vec<PathBuf>,
    /// Where applications call in each namespace: a loopback address, so that nobody calls from outside.
    #[schemars(schema_with = "address_schema")]
    pub listen: SocketAddr,
    /// Namespaces that are served at most; further ones are not, and `moa status` says so.
    #[schemars(range(min = 1, max = 4000))]
    pub max: usize,
    /// The application in a namespace, by the name of its file, or for one of `paths` by the whole path. Without an entry it is the
    /// file's name.
    pub applications: BTreeMap<String, String>,
}

/// Who calls from the agent's own namespace, by cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cgroups {
    /// The application of the processes in a cgroup and below it, by the cgroup's path from the root of cgroup2, such as
    /// /system.slice/shop.service. Of several that fit, the longest counts.
    pub applications: BTreeMap<String, String>,
}

impl Default for Namespaces {
    fn default() -> Self {
        Self {
            folder: None,
            include: vec!["*".into()],
            exclude: Vec::new(),
            paths: Vec::new(),
            listen: SocketAddr::from(([127, 0, 0, 1], 13000)),
            max: 1024,
            applications: BTreeMap::new(),
        }
    }
}

impl Namespaces {
    /// Whether any namespace can be served.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.folder.is_some() || !self.paths.is_empty()
    }

    /// Whether a file of the folder with this name counts.
    #[must_use]
    pub fn counts(&self, name: &str) -> bool {
        let fits = |patterns: &[String]| patterns.iter().any(|pattern| Pattern::new(pattern).fits(name.as_bytes()));
        fits(&self.include) && !fits(&self.exclude)
    }

    /// Why no namespace can have this name.
    fn wrong_reference(&self, name: &str) -> Option<(String, String)> {
        let path = Path::new(name);
        if self.paths.iter().any(|listed| listed == path) {
            None
        } else if path.is_absolute() {
            Some((format!("the namespace {name:?}, which is not listed"), "add it to namespaces.paths".into()))
        } else if name.is_empty() || name.contains('/') {
            let advice = "write the name of a file, or a path of namespaces.paths".into();
            Some((format!("the namespace {name:?}, which is no name of a file"), advice))
        } else if self.folder.is_none() {
            let found = format!("the namespace {name:?}, but no folder is watched");
            Some((found, format!("set namespaces.folder, such as {EXAMPLE_FOLDER:?}")))
        } else if !self.counts(name) {
            let found = format!("the namespace {name:?}, which namespaces.include and namespaces.exclude leave out");
            Some((found, "let them take it in".into()))
        } else {
            None
        }
    }
}

impl Check<'_, '_> {
    /// Checks which namespaces there are, and who is in them and in cgroups.
    pub(super) fn namespaces(&mut self, config: &Config) {
        let (at, namespaces) = (KeyPath::default().key("namespaces"), &config.namespaces);
        let listed = namespaces.paths.iter().enumerate().map(|(n, path)| (at.key("paths").index(n), path));
        let folder = namespaces.folder.iter().map(|folder| (at.key("folder"), folder));
        for (at, path) in listed.chain(folder).filter(|(_, path)| !path.is_absolute()) {
            let found = format!("the relative path {:?}", path.display());
            let advice = format!("write a path such as {EXAMPLE_FOLDER:?}");
            self.push(&at, Finding { found, expected: "an absolute path".into(), advice });
        }
        if !namespaces.listen.ip().is_loopback() {
            let finding = Finding {
                found: format!("{}, which others than the namespace's own processes could reach", namespaces.listen),
                expected: "a loopback address with a port".into(),
                advice: format!("write \"127.0.0.1:{}\"", namespaces.listen.port()),
            };
            self.push(&at.key("listen"), finding);
        }
        self.applications(&namespaces.applications, &at.key("applications"));
        let at = KeyPath::default().key("cgroups").key("applications");
        for path in config.cgroups.applications.keys().filter(|path| !is_cgroup(path)) {
            let finding = Finding {
                found: format!("the path {path:?}"),
                expected: "the path of a cgroup from the root of cgroup2, which begins with `/` and does not end with one".into(),
                advice: "write it as the last part of /proc/PID/cgroup has it".into(),
            };
            self.push(&at.key(path), finding);
        }
        self.applications(&config.cgroups.applications, &at);
    }

    fn applications(&mut self, applications: &BTreeMap<String, String>, at: &KeyPath) {
        for (place, name) in applications {
            if !is_application(name) {
                let finding = Finding {
                    found: format!("the name {name:?}"),
                    expected: format!("the name of an application, of at most {APPLICATION_BYTES_MAX} bytes"),
                    advice: "correct it, or remove the line".into(),
                };
                self.push(&at.key(place), finding);
            }
        }
    }

    /// Checks the namespaces that a service's instances are in.
    pub(super) fn namespaces_of(&mut self, service: &CheckedService, config: &Config, at: &KeyPath) {
        for (n, instance) in service.instances.iter().enumerate() {
            let Some(name) = &instance.namespace else { continue };
            if let Some((found, advice)) = config.namespaces.wrong_reference(name) {
                let expected = "the name of a file in namespaces.folder, or one of namespaces.paths".into();
                self.push(&at.index(n), Finding { found, expected, advice });
            }
        }
    }
}

/// Whether an application can have this name.
pub(super) fn is_application(name: &str) -> bool {
    (1..=APPLICATION_BYTES_MAX).contains(&name.len()) && !name.contains(|c: char| c.is_control())
}

fn is_cgroup(path: &str) -> bool {
    path.starts_with('/') && !path.ends_with('/') && !path.split('/').skip(1).any(|part| ["", ".", ".."].contains(&part))
}

#[cfg(test)]
mod tests {
    use crate::config::{Checked, Given, parse};

    fn read(text: &str) -> Result<Checked, String> {
        parse(text, "f", &Given::default()).map_err(|report| report.to_string())
    }

    #[test]
    fn a_whole_section() {
        let text = "[namespaces]\nfolder = '/run/netns'\ninclude = ['pod-*']\nexclude = ['*-x']\npaths = ['/proc/1/ns/net']\n\
                    applications = { pod-a = 'shop', '/proc/1/ns/net' = 'init' }\n\
                    [cgroups.applications]\n'/system.slice/web.service' = 'web'\n\
                    [services.'/s']\ninstances = ['127.0.0.1:1', { address = '127.0.0.1:1', namespace = 'pod-a' }, \
                    { address = '127.0.0.1:1', namespace = '/proc/1/ns/net' }]\n";
        let checked = read(text).unwrap();
        let namespaces = &checked.config.namespaces;
        assert!(namespaces.is_on() && namespaces.counts("pod-a") && !namespaces.counts("pod-x") && !namespaces.counts("cni-a"));
        assert_eq!(namespaces.listen.to_string(), "127.0.0.1:13000");
        let of = |n: usize| checked.services[0].instances[n].namespace.as_deref();
        assert_eq!((of(0), of(1), of(2)), (None, Some("pod-a"), Some("/proc/1/ns/net")));
        assert!(!Checked::default().config.namespaces.is_on());
    }

    #[test]
    fn what_is_wrong_says_what_to_do() {
        let instance = |more: &str| format!("[services.'/s']\ninstances = [{{ address = '127.0.0.1:1', {more} }}]\n");
        let cases = [
            ("[namespaces]\nfolder = 'netns'\n".to_owned(), "relative path"),
            ("[namespaces]\nfoldr = '/run/netns'\n".to_owned(), "did you mean `folder`?"),
            ("[namespaces]\npaths = ['/a', '/a']\n".to_owned(), "for the second time"),
            ("[namespaces]\nlisten = '0.0.0.0:13000'\n".to_owned(), "write \"127.0.0.1:13000\""),
            ("[namespaces]\nmax = 0\n".to_owned(), "namespaces.max"),
            ("[namespaces]\napplications = { a = '' }\n".to_owned(), "namespaces.applications.a"),
            ("[cgroups.applications]\n'system.slice' = 'a'\n".to_owned(), "/proc/PID/cgroup"),
            (instance("namespace = 'a'"), "set namespaces.folder"),
            (instance("namespace = '/a'") + "[namespaces]\nfolder = '/run/netns'\n", "add it to namespaces.paths"),
            (instance("namespace = 'a'") + "[namespaces]\nfolder = '/run/netns'\ninclude = ['b']\n", "leave out"),
            (instance("namespace = 'a/b'") + "[namespaces]\nfolder = '/run/netns'\n", "no name of a file"),
            (
                "[services.'/s']\ninstances = [{ address = '127.0.0.1:13000', namespace = 'a' }]\n[namespaces]\nfolder = '/n'\n"
                    .to_owned(),
                "where this agent itself listens",
            ),
        ];
        for (text, expected) in cases {
            let report = read(&text).unwrap_err();
            assert!(report.contains(expected), "{expected}: {report}");
        }
    }
}
