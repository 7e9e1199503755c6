//! Which namespaces are served: what is seen goes in, what is to be done comes out. No sockets, no clock, no files.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Id, scan::Seen};

/// A file may be there before its namespace is mounted on it. After this time it is said once that it is none.
const PATIENCE: Duration = Duration::from_secs(2);
/// How soon it is looked again while such a file is new, and how soon otherwise.
const SOON: Duration = Duration::from_millis(20);
const USUAL: Duration = Duration::from_secs(1);
/// Waits before a namespace that could not be served is tried again.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The files of one namespace, by name.
pub(crate) type Names = BTreeMap<Arc<str>, PathBuf>;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Serve a namespace, and say how that went.
    Open { id: Id, names: Names, application: Arc<str> },
    /// It has other names, or there is another application in it.
    Change { id: Id, names: Names, application: Arc<str> },
    /// Serve it no more.
    Close { id: Id },
    /// Tell the operator.
    Warn(String),
}

/// What the configuration says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy<'a> {
    /// Namespaces that are served at most.
    pub(crate) max: usize,
    /// Applications by the names of files.
    pub(crate) applications: &'a BTreeMap<String, String>,
}

/// Why a namespace, or a file, is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) name: Arc<str>,
    pub(crate) path: PathBuf,
    pub(crate) reason: String,
}

/// The namespaces that are served, and the files that are not.
#[derive(Debug)]
pub(crate) struct State {
    /// The agent's own.
    host: Option<Id>,
    served: BTreeMap<Id, Served>,
    others: BTreeMap<Arc<str>, Other>,
    /// The reason that was told last of a namespace that could not be served: many have the same one.
    told: Option<String>,
}

#[derive(Debug)]
struct Served {
    names: Names,
    application: Arc<str>,
    failed: Option<Failed>,
}

#[derive(Debug)]
struct Failed {
    reason: String,
    times: u32,
    again: Instant,
}

/// A file that is not served.
#[derive(Debug)]
struct Other {
    path: PathBuf,
    reason: String,
    since: Instant,
    told: bool,
}

impl State {
    pub(crate) fn new(host: Option<Id>) -> Self {
        Self { host, served: BTreeMap::new(), others: BTreeMap::new(), told: None }
    }

    /// Follows what was seen. What goes comes before what is new: a file may have been replaced.
    pub(crate) fn look(&mut self, seen: Vec<Seen>, policy: Policy<'_>, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut others = Vec::new();
        let mut found: BTreeMap<Id, Names> = BTreeMap::new();
        for Seen { name, path, is } in seen {
            match is {
                Ok(id) if Some(id) == self.host => {}
                Ok(id) => drop(found.entry(id).or_default().insert(name, path)),
                Err(reason) => others.push((name, path, reason)),
            }
        }
        let gone: Vec<Id> = self.served.keys().filter(|id| !found.contains_key(id)).copied().collect();
        for id in gone {
            // One that could not be served has nothing to close.
            if self.served.remove(&id).is_some_and(|served| served.failed.is_none()) {
                actions.push(Action::Close { id });
            }
        }
        for (id, names) in found {
            if self.served.contains_key(&id) || self.served.len() < policy.max {
                actions.extend(self.follow(id, names, policy, now));
            } else {
                let reason = format!("{} namespaces are served already (namespaces.max)", policy.max);
                others.extend(names.into_iter().map(|(name, path)| (name, path, reason.clone())));
            }
        }
        actions.extend(self.follow_others(others, now));
        actions
    }

    fn follow(&mut self, id: Id, names: Names, policy: Policy<'_>, now: Instant) -> Option<Action> {
        let application = application(&names, policy.applications);
        let Some(served) = self.served.get_mut(&id) else {
            self.served.insert(id, Served { names: names.clone(), application: application.clone(), failed: None });
            return Some(Action::Open { id, names, application });
        };
        let same = served.names == names && served.application == application;
        served.names.clone_from(&names);
        served.application.clone_from(&application);
        match &served.failed {
            Some(failed) if failed.again > now => None,
            Some(_) => Some(Action::Open { id, names, application }),
            None => (!same).then_some(Action::Change { id, names, application }),
        }
    }

    fn follow_others(&mut self, others: Vec<(Arc<str>, PathBuf, String)>, now: Instant) -> Vec<Action> {
        let names: BTreeSet<&Arc<str>> = others.iter().map(|(name, ..)| name).collect();
        self.others.retain(|name, _| names.contains(name));
        let mut actions = Vec::new();
        for (name, path, reason) in others {
            let other = self.others.entry(name).or_insert_with(|| Other { path, reason: String::new(), since: now, told: false });
            other.reason = reason;
            if !other.told && now.duration_since(other.since) >= PATIENCE {
                other.told = true;
                let (path, reason) = (other.path.display(), &other.reason);
                actions.push(Action::Warn(format!("{path} is not served: {reason}")));
            }
        }
        actions
    }

    /// A namespace is served.
    pub(crate) fn opened(&mut self, id: Id) {
        if let Some(served) = self.served.get_mut(&id) {
            served.failed = None;
            self.told = None;
        }
    }

    /// A namespace can't be served for now. Gives what the operator is told, unless that is known.
    pub(crate) fn failed(&mut self, id: Id, reason: String, now: Instant) -> Option<String> {
        let served = self.served.get_mut(&id)?;
        let times = served.failed.as_ref().map_or(0, |failed| failed.times);
        let is_new = served.failed.is_none() && self.told.as_ref() != Some(&reason);
        let wait = AGAIN.0.saturating_mul(1 << times.min(10)).min(AGAIN.1);
        let path = served.names.values().next().map_or(Path::new(""), PathBuf::as_path);
        let text = is_new.then(|| format!("{} can't be served, and is tried again: {reason}", path.display()));
        self.told = Some(reason.clone());
        served.failed = Some(Failed { reason, times: times + 1, again: now + wait });
        text
    }

    /// How soon to look again though nothing was told.
    pub(crate) fn look_again(&self, now: Instant) -> Duration {
        let is_new = |other: &Other| now.duration_since(other.since) < PATIENCE;
        if self.others.values().any(is_new) { SOON } else { USUAL }
    }

    /// Those that are served, with their names and applications.
    pub(crate) fn served(&self) -> impl Iterator<Item = (Id, &Names, &Arc<str>)> {
        let served = self.served.iter().filter(|(_, served)| served.failed.is_none());
        served.map(|(id, served)| (*id, &served.names, &served.application))
    }

    /// What is not served, and why. A new file of no namespace is not told of yet.
    pub(crate) fn failures(&self) -> Vec<Failure> {
        let failed = self.served.values().filter_map(|served| {
            let (name, path) = served.names.first_key_value()?;
            Some(Failure { name: name.clone(), path: path.clone(), reason: served.failed.as_ref()?.reason.clone() })
        });
        let others = self.others.iter().filter(|(_, other)| other.told);
        let others = others.map(|(name, other)| {
            let Other { path, reason, .. } = other;
            Failure { name: name.clone(), path: path.clone(), reason: reason.clone() }
        });
        failed.chain(others).collect()
    }
}

/// Who is in a namespace: what the configuration says of one of its files, else the first one's name.
fn application(names: &Names, applications: &BTreeMap<String, String>) -> Arc<str> {
    let configured = names.keys().find_map(|name| applications.get(&**name));
    let file_name = || names.values().next()?.file_name().map(|name| name.to_string_lossy().into_owned());
    configured.cloned().or_else(file_name).unwrap_or_default().into()
}
