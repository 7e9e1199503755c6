//! Clients that others wrote: redis-cli, redis-benchmark, PHP, Python, Node.

use std::{
    env,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::process::kill_after;

/// How long one of them may run.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a program that must be installed, and returns what it printed.
///
/// # Panics
/// If it is missing (naming `cargo xtask setup`), takes too long, or ends with an error.
pub fn run(command: &mut Command) -> String {
    let child = spawn(command.stdin(Stdio::null()));
    printed(command, await_end(child))
}

/// Like [`run`], with `input` on its standard input.
pub fn run_with_input(command: &mut Command, input: &str) -> String {
    let mut child = spawn(command.stdin(Stdio::piped()));
    let mut pipe = child.stdin.take().expect("a pipe to its input");
    pipe.write_all(input.as_bytes()).expect("writing to a client's input");
    drop(pipe);
    printed(command, await_end(child))
}

/// A script of `tests/clients`.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

/// Python with redis-py: `MOA_TEST_PYTHON`, or the environment that `cargo xtask setup` made.
pub fn python() -> Command {
    let path = env::var_os("MOA_TEST_PYTHON").map_or_else(|| target().join("test-venv/bin/python"), PathBuf::from);
    assert!(path.is_file(), "{} is missing: run `cargo xtask setup`", path.display());
    Command::new(path)
}

/// Node with node-redis, as `cargo xtask setup` installed it.
pub fn node() -> Command {
    let modules = target().join("test-node/node_modules");
    assert!(modules.join("redis").is_dir(), "{}/redis is missing: run `cargo xtask setup`", modules.display());
    let mut command = Command::new("node");
    command.env("NODE_PATH", modules);
    command
}

/// PHP with php-redis.
pub fn php() -> Command {
    let modules = run(Command::new("php").arg("-m"));
    assert!(modules.lines().any(|line| line == "redis"), "PHP lacks the module redis: run `cargo xtask setup`");
    Command::new("php")
}

fn printed(command: &Command, output: Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} ended with {}:\n{out}{err}", output.status);
    out.into_owned()
}

fn spawn(command: &mut Command) -> Child {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    child.unwrap_or_else(|error| panic!("{} cannot be run ({error}): run `cargo xtask setup`", command.get_program().display()))
}

fn await_end(child: Child) -> Output {
    let watch = kill_after(child.id(), LIMIT);
    let started = Instant::now();
    let output = child.wait_with_output().expect("the output of a client");
    watch.cancel();
    assert!(started.elapsed() < LIMIT, "a client was killed after {LIMIT:?}");
    output
}

fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from)
}
