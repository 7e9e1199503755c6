//! The command line: one file a verb.
//!
//! Results go to standard output, as text or with `--json` as JSON; everything else to standard error. The exit code is 0 if all is
//! well, 1 if not, and 2 if the command line is wrong.

mod agent;
mod call;
mod calls;
mod client;
mod completions;
mod config;
mod conns;
mod doctor;
mod drain;
mod failover;
mod growing;
mod kernel;
mod namespaces;
mod out;
mod redis;
mod routes;
mod services;
mod status;
mod table;
mod units;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory, Parser, Subcommand, error::ErrorKind};

use self::out::Out;
use crate::instance::{DEFAULT_NAME, Name, RunDir};

/// The local agent of MOA Mesh, and its operator's tools.
#[derive(Debug, Parser)]
#[command(name = "moa", version, max_term_width = 110, arg_required_else_help = true, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// What every verb takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every verb")]
struct Global {
    /// Name of the agent: lower-case letters, digits and `-`, at most 32.
    #[arg(long, global = true, env = "MOA_NAME", default_value = DEFAULT_NAME, value_name = "NAME")]
    name: Name,
    /// Where agents have their sockets [default: /run/moa for root, else $XDG_RUNTIME_DIR/moa].
    #[arg(long, global = true, env = "MOA_RUN_DIR", value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run an agent.
    Agent(agent::Agent),
    /// Show how an agent is.
    Status,
    /// Show services, their instances and their calls.
    Services(services::Services),
    /// Show what the policies of services say about calls, and what they did; explain what becomes of one.
    Routes(routes::Routes),
    /// Show the connections of applications.
    Conns(conns::Conns),
    /// Show the network namespaces that are served, and those that are not.
    Namespaces,
    /// Show calls as they end.
    Calls(calls::Calls),
    /// Call a service through an agent, as an application does.
    Call(call::Call),
    /// Have an agent take no new work, finish what is in flight, and say what is left.
    #[command(after_help = drain::WHAT_IT_DOES)]
    Drain(drain::Drain),
    /// Show the kernel path, turn it on and off, remove it.
    Kernel(kernel::Kernel),
    /// Show where applications go when this agent can't take them, turn it on and off, send others' home.
    Failover(failover::Failover),
    /// Check this machine and the agent, and say how to mend what is wrong.
    Doctor(doctor::Doctor),
    /// Check, show and reload configurations.
    Config(config::Config),
    /// Print a script that completes commands in a shell.
    Completions(completions::Completions),
    /// Write manual pages into a folder.
    Man(completions::Man),
}

/// Runs the verb of the command line.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { global, verb } = Cli::parse();
    let out = Out::new(global.json);
    match run(verb, &global, &out) {
        Ok(code) => code,
        Err(error) => {
            out.failed(&error);
            ExitCode::FAILURE
        }
    }
}

/// Says what is wrong with the words of a verb, and ends as the parser itself does.
fn usage_error(verb: &str, wrong: &str) -> ! {
    let mut command = Cli::command();
    command.build();
    command.find_subcommand(verb).unwrap_or(&command).clone().error(ErrorKind::ValueValidation, wrong).exit()
}

fn run(verb: Verb, global: &Global, out: &Out) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Agent(agent) => agent.run(global),
        Verb::Status => status::run(global, out),
        Verb::Services(services) => services.run(global, out),
        Verb::Routes(routes) => routes.run(global, out),
        Verb::Conns(conns) => conns.run(global, out),
        Verb::Namespaces => namespaces::run(global, out),
        Verb::Calls(calls) => calls.run(global, out),
        Verb::Call(call) => call.run(global, out),
        Verb::Drain(drain) => drain.run(global, out),
        Verb::Kernel(kernel) => kernel.run(global, out),
        Verb::Failover(failover) => failover.run(global, out),
        Verb::Doctor(doctor) => doctor.run(global, out),
        Verb::Config(config) => config.run(global, out),
        Verb::Completions(completions) => completions.run(out),
        Verb::Man(man) => man.run(out),
    }
}

impl Global {
    /// The agent that a verb asks.
    fn client(&self) -> client::Client {
        client::Client::new(RunDir::of_agent(self.run_dir.clone(), &self.name), self.name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
