//! `moa namespaces`.

use std::process::ExitCode;

use anyhow::Result;

use super::{
    Global, Out,
    out::OUT,
    table::{Side::Left, Table},
};
use crate::api::Namespace;

pub(super) fn run(global: &Global, out: &Out) -> Result<ExitCode> {
    let namespaces: Vec<Namespace> = global.client().get("/v1/namespaces")?;
    out.show(&namespaces, |namespaces| render(namespaces))?;
    Ok(ExitCode::SUCCESS)
}

fn render(namespaces: &[Namespace]) -> String {
    let mut table = Table::new(&[("NAME", Left), ("APPLICATION", Left), ("LISTENS AT", Left), ("FILE", Left), ("STATE", Left)]);
    for Namespace { name, path, application, listen, reason } in namespaces {
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        let state = reason.as_ref().map_or_else(|| OUT.good("served"), |reason| OUT.bad(reason));
        table.row([name.clone(), text(application), text(listen), path.clone(), state]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_a_line() {
        let served = Namespace {
            name: "pod-a".into(),
            path: "/run/netns/pod-a".into(),
            application: Some("shop".into()),
            listen: Some("127.0.0.1:13000".into()),
            reason: None,
        };
        let (name, path, reason) = ("x".into(), "/run/netns/x".into(), Some("it is no namespace's file".into()));
        let failed = Namespace { name, path, application: None, listen: None, reason };
        let expected = "\
NAME   APPLICATION  LISTENS AT       FILE              STATE
pod-a  shop         127.0.0.1:13000  /run/netns/pod-a  served
x      -            -                /run/netns/x      it is no namespace's file
";
        assert_eq!(render(&[served, failed]), expected);
    }
}
