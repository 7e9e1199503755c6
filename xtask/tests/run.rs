//! `cargo xtask run` as a user has it: what it shows, and that nothing stays, however it ends.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Time for what takes a second or two, on a machine that does other things as well.
const WITHIN: Duration = Duration::from_secs(60);

/// The task, run for a test in a folder for temporary files of its own.
struct Task {
    child: Child,
    output: BufReader<ChildStdout>,
    folder: tempfile::TempDir,
    port: u16,
}

impl Task {
    fn start(args: &[&str]) -> Self {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        Self::on(port, args)
    }

    fn on(port: u16, args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut task = Command::new(env!("CARGO_BIN_EXE_xtask"));
        task.args(["run", "--requests-per-second", "200", "--port", &port.to_string()]).args(args);
        let task = task.stdin(Stdio::piped());
        let mut child = task.env("TMPDIR", folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output, folder, port }
    }

    /// Reads lines up to one that contains the text.
    fn until(&mut self, text: &str) -> String {
        let mut all = String::new();
        while self.output.read_line(&mut all).unwrap() > 0 {
            if all.lines().last().is_some_and(|line| line.contains(text)) {
                return all;
            }
        }
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        panic!("it ended without {text:?}:\n{all}{errors}");
    }

    fn press(&mut self, key: u8) {
        self.child.stdin.as_mut().unwrap().write_all(&[key]).unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// The rest of its output, and how it ended.
    fn end(&mut self) -> (String, ExitStatus) {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        (rest, self.child.wait().unwrap())
    }

    /// Nobody listens any more, and no process has the folder in its command line.
    fn nothing_runs(&self) {
        let deadline = Instant::now() + WITHIN;
        let folder = self.folder.path().to_str().unwrap();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() || processes(folder) > 0 {
            assert!(Instant::now() < deadline, "port {} or a process of {folder} is still there", self.port);
            thread::yield_now();
        }
    }
}

fn processes(folder: &str) -> usize {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(folder)).count()
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn shows_calls_and_leaves_nothing() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut task = Task::start(&[]);
        let said = task.until("calls/s");
        assert!(said.contains(&format!("redis-cli -p {} GET '{{\"action\":\"/service/demo\"", task.port)), "{said}");
        assert!(said.contains("errors 0"), "{said}");
        task.signal(signal);
        let (rest, status) = task.end();
        assert!(status.success() && rest.ends_with("stopped: nothing is left behind\n"), "{signal}: {status}\n{rest}");
        task.nothing_runs();
        assert!(is_empty(task.folder.path()));
    }
}

#[test]
fn ends_by_itself_with_a_sum() {
    let mut task = Task::start(&["--seconds", "2", "--no-kernel"]);
    let (said, status) = task.end();
    assert!(status.success(), "{said}");
    assert!(said.contains("Userspace only: kernel.mode is off"), "{said}");
    assert!(said.contains(" calls in 2 s: p50 "), "{said}");
    task.nothing_runs();
}

#[test]
fn calls_a_frame_service_on_another_node() {
    let mut task = Task::start(&["--nodes", "2", "--seconds", "2", "--no-kernel"]);
    let (said, status) = task.end();
    assert!(status.success(), "{said}");
    assert!(said.contains("by its tunnel to the agent") && said.contains("errors 0"), "{said}");
    task.nothing_runs();
    assert!(is_empty(task.folder.path()));
}

#[test]
fn an_agent_that_is_killed_by_a_key_is_stood_in_for() {
    let mut task = Task::start(&["--nodes", "2"]);
    let said = task.until("calls/s");
    assert!(said.contains("k kills the agent"), "{said}");
    task.press(b'k');
    task.until("the agent is killed");
    // A second that began before may have calls of before; the one after that has none.
    task.until("calls/s");
    let said = task.until("calls/s");
    assert!(!said.contains(" 0 calls/s"), "{said}");
    task.press(b'r');
    task.until("the agent is back");
    task.until("calls/s");
    task.signal(Signal::SIGINT);
    let (rest, status) = task.end();
    assert!(status.success() && rest.ends_with("stopped: nothing is left behind\n"), "{status}\n{rest}");
    let errors: u64 = rest.lines().rev().find_map(|line| line.split_once(" errors ")?.1.parse().ok()).unwrap();
    // Its four connections were reset.
    assert!(errors <= 8, "{rest}");
    task.nothing_runs();
    assert!(is_empty(task.folder.path()));
}

#[test]
fn no_process_outlives_it_when_it_is_killed() {
    let mut task = Task::start(&[]);
    task.until("calls/s");
    assert!(processes(task.folder.path().to_str().unwrap()) > 0, "the agent is not found even while it runs");
    task.child.kill().unwrap();
    task.end();
    task.nothing_runs();
}

#[test]
fn a_taken_port_is_an_error_that_names_the_holder() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut task = Task::on(listener.local_addr().unwrap().port(), &[]);
    let mut errors = String::new();
    task.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert!(!task.end().1.success());
    let me = format!("port {} is taken by run-", task.port);
    assert!(
        errors.contains(&me) && errors.contains(&format!("(pid {}): stop it, or pass another with --port", std::process::id())),
        "{errors}"
    );
}
