//! Which instances rules send calls to.

use std::{collections::BTreeMap, fmt, sync::Arc};

use super::chance::hash;
use crate::config::{Traits, traffic::To};

/// Some of the instances of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Subset {
    /// The service whose instances they are; none is the plan's own. Only shadows have one.
    pub(crate) service: Option<Arc<str>>,
    /// The group whose instances they are; none is the call's own.
    pub(crate) group: Option<Arc<str>>,
    /// The environment that they must be of; without it, they must have none.
    pub(crate) environment: Option<Arc<str>>,
    /// The labels that they must have.
    pub(crate) labels: BTreeMap<String, String>,
}

impl Subset {
    /// Those of this environment.
    pub(super) fn of_environment(name: &str) -> Self {
        Self { environment: some(name), ..Self::default() }
    }

    /// Those that a rule means.
    pub(super) fn of(to: &To, service: Option<&str>) -> Self {
        Self {
            service: service.and_then(some),
            group: to.group.as_deref().and_then(some),
            environment: to.environment.as_deref().and_then(some),
            labels: to.labels.clone(),
        }
    }

    /// The same as a rule of the service and group that it is about would say it.
    pub(crate) fn at_home(&self) -> Self {
        Self { service: None, group: None, environment: self.environment.clone(), labels: self.labels.clone() }
    }

    /// The service and the group that it is about, seen from these; none if it is about themselves.
    pub(crate) fn elsewhere<'s>(&'s self, uri: &'s str, group: &'s str) -> Option<(&'s str, &'s str)> {
        let own_group = if self.service.is_some() { "" } else { group };
        let there = (self.service.as_deref().unwrap_or(uri), self.group.as_deref().unwrap_or(own_group));
        (there != (uri, group)).then_some(there)
    }

    /// Whether an instance of the service and group belongs to it.
    pub(crate) fn fits(&self, traits: &Traits) -> bool {
        self.environment.as_deref().unwrap_or_default() == traits.environment
            && self.labels.iter().all(|(name, value)| traits.labels.get(name) == Some(value))
    }

    /// Why an instance does not belong to it, for people; none if it does.
    pub(crate) fn misfit(&self, traits: &Traits) -> Option<String> {
        if self.fits(traits) {
            return None;
        }
        let wanted = self.environment.as_deref().unwrap_or_default();
        if wanted != traits.environment {
            return Some(match &*traits.environment {
                "" => format!("it has no environment, not {wanted:?}"),
                own if wanted.is_empty() => format!("it is of environment {own:?}"),
                own => format!("it is of environment {own:?}, not {wanted:?}"),
            });
        }
        let differs = |(name, value): &(&String, &String)| traits.labels.get(*name) != Some(*value);
        let (name, value) = self.labels.iter().find(differs)?;
        Some(match traits.labels.get(name) {
            Some(own) => format!("it has {name} = {own:?}, not {value:?}"),
            None => format!("it has no label {name}"),
        })
    }

    /// What tells it from others, whatever stands around it in the configuration.
    pub(super) fn salt(&self) -> u64 {
        let names = [&self.service, &self.group, &self.environment].map(|name| name.as_deref().unwrap_or_default());
        let labels = self.labels.iter().flat_map(|(name, value)| [name.as_str(), value]);
        hash(&names.into_iter().chain(labels).map(str::as_bytes).collect::<Vec<_>>())
    }
}

impl fmt::Display for Subset {
    /// For people: `instances of environment "pre" with version = "2"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("instances")?;
        match &self.environment {
            Some(name) => write!(f, " of environment {name:?}")?,
            None => f.write_str(" without an environment")?,
        }
        for (at, (name, value)) in self.labels.iter().enumerate() {
            write!(f, "{}{name} = {value:?}", if at == 0 { " with " } else { ", " })?;
        }
        if let Some(group) = &self.group {
            write!(f, " in group {group:?}")?;
        }
        self.service.as_ref().map_or(Ok(()), |service| write!(f, " of service {service}"))
    }
}

/// The position of `subset` in the list, where it stands once.
pub(super) fn index(subsets: &mut Vec<Subset>, subset: Subset) -> usize {
    let found = subsets.iter().position(|known| *known == subset);
    found.unwrap_or_else(|| {
        subsets.push(subset);
        subsets.len() - 1
    })
}

fn some(name: &str) -> Option<Arc<str>> {
    (!name.is_empty()).then(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traits(environment: &str, labels: &[(&str, &str)]) -> Traits {
        let labels = labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Traits { environment: environment.into(), labels, ..Traits::default() }
    }

    fn to(environment: Option<&str>, labels: &[(&str, &str)]) -> Subset {
        let traits = traits("", labels);
        Subset::of(&To { environment: environment.map(Into::into), labels: traits.labels, ..To::default() }, None)
    }

    #[test]
    fn the_default_one_has_no_environment() {
        assert!(Subset::default().fits(&traits("", &[("version", "2")])));
        assert!(!Subset::default().fits(&traits("pre", &[])));
        assert_eq!(to(Some(""), &[]), Subset::default());
        assert_eq!(to(None, &[]), Subset::default());
    }

    #[test]
    fn environment_and_all_labels_must_be_equal() {
        let subset = to(Some("pre"), &[("version", "2"), ("size", "l")]);
        assert!(subset.fits(&traits("pre", &[("version", "2"), ("size", "l"), ("more", "")])));
        assert!(!subset.fits(&traits("pre", &[("version", "2")])));
        assert!(!subset.fits(&traits("pre", &[("version", "3"), ("size", "l")])));
        assert!(!subset.fits(&traits("", &[("version", "2"), ("size", "l")])));
        assert!(!to(None, &[("version", "2")]).fits(&traits("pre", &[("version", "2")])));
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let subset = to(Some("pre"), &[("version", "2")]);
        let misfit = |subset: &Subset, own: Traits| subset.misfit(&own).unwrap_or_default();
        assert_eq!(misfit(&subset, traits("pre", &[("version", "2")])), "");
        assert_eq!(misfit(&subset, traits("", &[])), r#"it has no environment, not "pre""#);
        assert_eq!(misfit(&subset, traits("grey", &[])), r#"it is of environment "grey", not "pre""#);
        assert_eq!(misfit(&subset, traits("pre", &[])), "it has no label version");
        assert_eq!(misfit(&subset, traits("pre", &[("version", "3")])), r#"it has version = "3", not "2""#);
        assert_eq!(misfit(&Subset::default(), traits("pre", &[])), r#"it is of environment "pre""#);
    }

    #[test]
    fn each_stands_once() {
        let mut subsets = vec![Subset::default()];
        assert_eq!(index(&mut subsets, Subset::of_environment("pre")), 1);
        assert_eq!(index(&mut subsets, to(None, &[])), 0);
        assert_eq!(index(&mut subsets, to(Some("pre"), &[])), 1);
        assert_eq!(index(&mut subsets, Subset::of(&To::default(), Some("/service/other"))), 2);
        assert_eq!(subsets.len(), 3);
    }

    #[test]
    fn people_can_read_it() {
        assert_eq!(Subset::default().to_string(), "instances without an environment");
        let to = To { group: Some("b".into()), ..To::default() };
        assert_eq!(Subset::of(&to, Some("/s")).to_string(), r#"instances without an environment in group "b" of service /s"#);
        let text = self::to(Some("pre"), &[("size", "l"), ("version", "2")]).to_string();
        assert_eq!(text, r#"instances of environment "pre" with size = "l", version = "2""#);
    }
}
