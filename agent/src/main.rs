//! `moa`: the agent and the operator's command line.

fn main() {}
