use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const HOST: Id = Id { device: 4, inode: 0 };

fn id(inode: u64) -> Id {
    Id { inode, ..HOST }
}

fn file(name: &str, inode: u64) -> Seen {
    Seen { name: name.into(), path: Path::new("/run/netns").join(name), is: Ok(id(inode)) }
}

fn plain(name: &str) -> Seen {
    Seen { is: Err("it is no namespace's file".into()), ..file(name, 0) }
}

struct Bed {
    state: State,
    applications: BTreeMap<String, String>,
    max: usize,
    now: Instant,
}

impl Bed {
    fn new() -> Self {
        Self { state: State::new(Some(HOST)), applications: BTreeMap::new(), max: 10, now: Instant::now() }
    }

    fn look(&mut self, seen: impl Into<Vec<Seen>>) -> Vec<String> {
        let policy = Policy { max: self.max, applications: &self.applications };
        let actions = self.state.look(seen.into(), policy, self.now);
        actions.into_iter().map(shown).collect()
    }
}

/// An action in a word.
fn shown(action: Action) -> String {
    let names = |names: Names| names.into_keys().collect::<Vec<_>>().join("+");
    match action {
        Action::Open { id, names: files, application } => format!("open {} {} as {application}", id.inode, names(files)),
        Action::Change { id, names: files, application } => format!("change {} {} as {application}", id.inode, names(files)),
        Action::Close { id } => format!("close {}", id.inode),
        Action::Warn(text) => format!("warn {text}"),
    }
}

#[test]
fn namespaces_come_and_go() {
    let mut bed = Bed::new();
    assert_eq!(bed.look([file("a", 1), file("host", 0)]), ["open 1 a as a"]);
    assert!(bed.look([file("a", 1)]).is_empty());
    assert_eq!(bed.look([file("a", 2)]), ["close 1", "open 2 a as a"], "the file was replaced");
    assert_eq!(bed.look([]), ["close 2"]);
    assert!(bed.look([]).is_empty());
}

#[test]
fn two_files_are_one_namespace() {
    let mut bed = Bed::new();
    assert_eq!(bed.look([file("b", 1), file("a", 1)]), ["open 1 a+b as a"]);
    assert_eq!(bed.look([file("b", 1)]), ["change 1 b as b"]);
    bed.applications.insert("c".into(), "shop".into());
    assert_eq!(bed.look([file("b", 1), file("c", 1)]), ["change 1 b+c as shop"]);
    bed.applications.clear();
    assert_eq!(bed.look([file("b", 1), file("c", 1)]), ["change 1 b+c as b"]);
    assert_eq!(bed.look([]), ["close 1"]);
}

#[test]
fn a_file_may_be_there_before_its_namespace() {
    let mut bed = Bed::new();
    assert!(bed.look([plain("a")]).is_empty());
    assert_eq!(bed.state.look_again(bed.now), SOON);
    assert!(bed.state.failures().is_empty());
    bed.now += PATIENCE / 2;
    assert_eq!(bed.look([file("a", 1)]), ["open 1 a as a"]);
    assert_eq!(bed.state.look_again(bed.now), USUAL);
}

#[test]
fn what_stays_no_namespace_is_told_of_once() {
    let mut bed = Bed::new();
    bed.look([plain("a")]);
    bed.now += PATIENCE;
    assert_eq!(bed.look([plain("a")]), ["warn /run/netns/a is not served: it is no namespace's file"]);
    assert_eq!(bed.state.look_again(bed.now), USUAL);
    bed.now += PATIENCE;
    assert!(bed.look([plain("a")]).is_empty());
    assert_eq!(bed.state.failures().len(), 1);
    bed.look([]);
    assert!(bed.state.failures().is_empty());
}

#[test]
fn what_fails_is_tried_again() {
    let mut bed = Bed::new();
    bed.look([file("a", 1), file("b", 2)]);
    assert!(bed.state.failed(id(1), "no".into(), bed.now).is_some_and(|text| text.starts_with("/run/netns/a ")));
    assert_eq!(bed.state.failed(id(2), "no".into(), bed.now), None, "it is known by now");
    assert_eq!((bed.state.served().count(), bed.state.failures().len()), (0, 2));
    assert!(bed.look([file("a", 1), file("b", 2)]).is_empty(), "not yet");
    bed.now += AGAIN.0;
    assert_eq!(bed.look([file("a", 1), file("b", 2)]), ["open 1 a as a", "open 2 b as b"]);
    bed.state.opened(id(1));
    assert_eq!(bed.state.failed(id(2), "no".into(), bed.now), None);
    bed.now += AGAIN.0;
    assert!(bed.look([file("a", 1), file("b", 2)]).is_empty(), "twice as long");
    assert_eq!(bed.look([]), ["close 1"], "what never was served is not closed");
    assert_eq!(bed.state.failed(id(2), "late".into(), bed.now), None);
}

#[test]
fn there_are_only_so_many() {
    let mut bed = Bed::new();
    bed.max = 1;
    assert_eq!(bed.look([file("a", 1), file("b", 2)]), ["open 1 a as a"]);
    bed.now += PATIENCE;
    let actions = bed.look([file("a", 1), file("b", 2)]);
    assert_eq!(actions, ["warn /run/netns/b is not served: 1 namespaces are served already (namespaces.max)"]);
    assert_eq!(bed.look([file("b", 2)]), ["close 1", "open 2 b as b"], "there is room");
}

proptest! {
    /// Whatever happens to the files: what is served is what is there, within the bound, each opened once and closed once.
    #[test]
    fn what_is_served_is_what_is_there(
        steps in proptest::collection::vec(proptest::collection::vec((0..4_usize, 0..5_u64, any::<bool>()), 0..5), 1..20),
    ) {
        let mut bed = Bed::new();
        bed.max = 3;
        let mut open: HashMap<Id, Names> = HashMap::new();
        for step in steps {
            // Of two with one name the last counts, as in a folder.
            let files: BTreeMap<usize, (u64, bool)> = step.iter().map(|(name, inode, is)| (*name, (*inode, *is))).collect();
            let seen: Vec<Seen> = files
                .iter()
                .map(|(name, (inode, is))| if *is { file(&name.to_string(), *inode) } else { plain(&name.to_string()) })
                .collect();
            let mut there: HashMap<Id, Names> = HashMap::new();
            for seen in &seen {
                if let Ok(id) = seen.is && id != HOST {
                    there.entry(id).or_default().insert(seen.name.clone(), seen.path.clone());
                }
            }
            let policy = Policy { max: bed.max, applications: &bed.applications };
            for action in bed.state.look(seen, policy, bed.now) {
                match action {
                    Action::Open { id, names, .. } => {
                        prop_assert!(open.insert(id, names).is_none(), "opened twice");
                        bed.state.opened(id);
                    }
                    Action::Change { id, names, .. } => prop_assert!(open.insert(id, names).is_some()),
                    Action::Close { id } => prop_assert!(open.remove(&id).is_some()),
                    Action::Warn(_) => {}
                }
            }
            prop_assert_eq!(open.len(), there.len().min(bed.max));
            for (id, names) in &open {
                prop_assert_eq!(there.get(id), Some(names));
            }
            bed.now += SOON;
        }
    }
}
