//! `moa conns`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::{
    Global, Out,
    table::{
        Side::{Left, Right},
        Table,
    },
    units::{age, bytes, count},
};
use crate::api::Conn;

/// Show the connections of applications.
#[derive(Debug, Args)]
pub(super) struct Conns {
    /// How many at most.
    #[arg(long, default_value_t = 1000, value_name = "N")]
    limit: usize,
}

impl Conns {
    pub(super) fn run(self, global: &Global, out: &Out) -> Result<ExitCode> {
        let conns: Vec<Conn> = global.client().get(&format!("/v1/conns?limit={}", self.limit))?;
        out.show(&conns, |conns| render(conns, self.limit))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn render(conns: &[Conn], limit: usize) -> String {
    let mut table = Table::new(&[
        ("ID", Right),
        ("WORKER", Right),
        ("PEER", Left),
        ("NAME", Left),
        ("NAMESPACE", Left),
        ("PROTOCOL", Left),
        ("AGE", Right),
        ("IDLE", Right),
        ("CALLS", Right),
        ("IN FLIGHT", Right),
        ("QUEUED", Right),
    ]);
    for conn in conns {
        table.row([
            conn.id.to_string(),
            conn.worker.to_string(),
            conn.peer.clone(),
            conn.name.clone().unwrap_or_else(|| "-".into()),
            conn.namespace.clone().unwrap_or_else(|| "-".into()),
            conn.protocol.clone(),
            age(conn.age_ms),
            age(conn.idle_ms),
            count(conn.calls),
            count(conn.in_flight),
            bytes(conn.queued_bytes),
        ]);
    }
    let more = if conns.len() == limit { format!("the first {limit}; --limit takes more\n") } else { String::new() };
    table.render() + &more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_a_line() {
        let conn = Conn {
            id: 12,
            worker: 1,
            peer: "127.0.0.1:40404".into(),
            name: None,
            namespace: Some("pod-a".into()),
            protocol: "resp2".into(),
            age_ms: 3_000,
            idle_ms: 20,
            calls: 1_000,
            in_flight: 2,
            queued_bytes: 10,
        };
        let expected = "\
ID  WORKER  PEER             NAME  NAMESPACE  PROTOCOL  AGE  IDLE  CALLS  IN FLIGHT  QUEUED
12       1  127.0.0.1:40404  -     pod-a      resp2      3s  20ms  1,000          2    10 B
the first 1; --limit takes more
";
        assert_eq!(render(std::slice::from_ref(&conn), 1), expected);
        assert_eq!(render(&[], 10).lines().count(), 1);
    }
}
