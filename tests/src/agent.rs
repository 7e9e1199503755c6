//! A real agent: the `moa` binary in a process of its own.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    client::Client,
    machine::{free_address, release_address},
    process::Process,
    resp::Reply,
    wait::{PATIENCE, until, until_true},
};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// What an agent is started with; [`Agent::prepare`] makes one.
pub struct Prepared {
    dir: TempDir,
    name: String,
    config: String,
    app: SocketAddr,
    tunnel: SocketAddr,
    metrics: SocketAddr,
    run_dir: PathBuf,
    kernel: Option<String>,
    log: Option<String>,
    /// A capability that it lacks.
    lacks: Option<String>,
}

/// A running agent.
pub struct Agent {
    // Before the directory that its log is in.
    process: Process,
    prepared: Prepared,
    /// Of the agent itself; `process` is its parent.
    pid: u32,
    /// Whether its log may hold a panic: never, unless the test killed it.
    killed: bool,
}

/// What a verb printed, and how it ended.
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Agent {
    /// Starts an agent with this configuration, and waits until it serves.
    pub fn start(config: &str) -> Self {
        Self::prepare(config).start()
    }

    /// Prepares an agent: a directory, a name and ports of its own.
    pub fn prepare(config: &str) -> Prepared {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = tempfile::Builder::new().prefix("moa-test-").tempdir().expect("a temporary directory");
        Prepared {
            run_dir: dir.path().join("run"),
            dir,
            name: format!("t{}-{number}", std::process::id()),
            config: config.to_owned(),
            app: free_address(),
            tunnel: free_address(),
            metrics: free_address(),
            kernel: Some(kernel()),
            log: None,
            lacks: None,
        }
    }

    /// Where applications call it.
    pub fn address(&self) -> SocketAddr {
        self.prepared.app
    }

    /// Where other agents connect to.
    pub fn tunnel_address(&self) -> SocketAddr {
        self.prepared.tunnel
    }

    /// Where machines ask for its metrics.
    pub fn metrics_address(&self) -> SocketAddr {
        self.prepared.metrics
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.prepared.name
    }

    /// The process id of the agent itself.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The process id of its parent, which an operator has started and sends signals to.
    pub fn parent_pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its run directory.
    pub fn run_dir(&self) -> &Path {
        &self.prepared.run_dir
    }

    /// The file it is configured by.
    pub fn config_path(&self) -> PathBuf {
        self.prepared.config_path()
    }

    /// A new connection to it.
    pub fn connect(&self) -> Client {
        Client::connect(self.address())
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Replaces its configuration file; it takes effect with a reload.
    pub fn write_config(&self, config: &str) {
        fs::write(self.config_path(), config).expect("writing the agent's configuration");
    }

    /// Replaces its configuration and has it reloaded by the verb.
    pub fn reload(&self, config: &str) {
        self.write_config(config);
        let outcome = self.verb(&["config", "reload"]);
        assert!(outcome.status.success(), "moa config reload: {}{}", outcome.stdout, outcome.stderr);
    }

    /// Runs a verb of the CLI against it.
    pub fn verb(&self, words: &[&str]) -> Outcome {
        self.prepared.verb(words)
    }

    /// Runs a verb with `--json`, and parses what it prints.
    pub fn json(&self, words: &[&str]) -> Value {
        let words: Vec<_> = words.iter().copied().chain(["--json"]).collect();
        let outcome = self.verb(&words);
        assert!(outcome.status.success(), "moa {words:?}: {}{}", outcome.stdout, outcome.stderr);
        serde_json::from_str(&outcome.stdout)
            .unwrap_or_else(|error| panic!("moa {words:?} printed no JSON ({error}): {}", outcome.stdout))
    }

    /// One instance of a service, as `moa services --json` shows it.
    pub fn instance(&self, service: &str, address: SocketAddr) -> Option<Value> {
        let services = self.json(&["services"]);
        let service = services.as_array()?.iter().find(|entry| entry["uri"] == service)?;
        service["instances"].as_array()?.iter().find(|entry| entry["address"] == address.to_string()).cloned()
    }

    /// Waits until its health check finds an instance healthy, or not.
    pub fn await_health(&self, service: &str, address: SocketAddr, healthy: bool) {
        until_true(&format!("{address} to be found {}", if healthy { "healthy" } else { "unhealthy" }), || {
            self.instance(service, address).is_some_and(|instance| instance["healthy"] == healthy)
        });
    }

    /// Sends its parent a signal, as an operator does.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Sends a signal to the agent itself.
    pub fn signal_itself(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid.cast_signed()), signal).unwrap_or_else(|error| panic!("{signal} to the agent: {error}"));
    }

    /// Stops it with SIGSTOP, and waits until each of its threads stands still. Its parent goes on, and sees it hang.
    pub fn freeze(&self) {
        self.signal_itself(Signal::SIGSTOP);
        let tasks = format!("/proc/{}/task", self.pid());
        let stands_still = |task: fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        };
        until_true("each thread to stand still", || fs::read_dir(&tasks).expect("its threads").flatten().all(stands_still));
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal_itself(Signal::SIGCONT);
    }

    /// Stops it with its parent, as a machine that stands still does.
    pub fn freeze_all(&self) {
        self.signal(Signal::SIGSTOP);
        self.freeze();
    }

    /// Lets both go on.
    pub fn thaw_all(&self) {
        self.thaw();
        self.signal(Signal::SIGCONT);
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        self.process.wait_within(limit)
    }

    /// Stops it gracefully; it must end with 0.
    pub fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait(PATIENCE);
        assert!(status.success(), "the agent ended with {status} after SIGTERM");
    }

    /// Kills it without notice.
    pub fn kill(&mut self) {
        self.end();
        self.killed = true;
    }

    /// Kills it and waits for its parent, if they have not ended.
    fn end(&mut self) {
        if self.process.ended().is_none() {
            // Its parent may have been stopped, or at this moment come to an end with it.
            let _ = kill(Pid::from_raw(self.pid.cast_signed()), Signal::SIGKILL);
            self.process.signal(Signal::SIGCONT);
            self.process.wait();
        }
    }

    /// Starts it once more after its end: the same name, directories and ports.
    pub fn start_again(&mut self) {
        assert!(self.ended().is_some(), "the agent still runs");
        self.process = self.prepared.serve();
        self.pid = self.prepared.pid();
        self.killed = false;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let Prepared { app, tunnel, metrics, .. } = self.prepared;
        [app, tunnel, metrics].into_iter().for_each(release_address);
        if let Some(status) = self.process.ended().filter(|_| std::thread::panicking()) {
            eprintln!("the agent {} had ended: {status}", self.name());
        }
        self.end();
        self.prepared.clean_kernel();
        if std::thread::panicking() || self.killed {
            return;
        }
        let log = self.log();
        assert!(!log.contains("panicked at"), "the agent panicked:\n{log}");
    }
}

impl Prepared {
    /// Gives the agent another name.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Lets it use another's run directory.
    #[must_use]
    pub fn beside(mut self, other: &Agent) -> Self {
        self.run_dir.clone_from(&other.prepared.run_dir);
        self
    }

    /// Lets applications call it here.
    #[must_use]
    pub fn listen_at(mut self, address: SocketAddr) -> Self {
        self.app = address;
        self
    }

    /// Lets other agents connect to it here.
    #[must_use]
    pub fn tunnel_at(mut self, address: SocketAddr) -> Self {
        self.tunnel = address;
        self
    }

    /// Gives it another configuration, such as one that names agents that were prepared after it.
    #[must_use]
    pub fn configured(mut self, config: &str) -> Self {
        config.clone_into(&mut self.config);
        self
    }

    /// Has it use the kernel path like this, whatever `MOA_TEST_KERNEL` says.
    #[must_use]
    pub fn kernel(mut self, mode: &str) -> Self {
        self.kernel = Some(mode.to_owned());
        self
    }

    /// Has its configuration alone say whether it uses the kernel path.
    #[must_use]
    pub fn kernel_as_configured(mut self) -> Self {
        self.kernel = None;
        self
    }

    /// Has it log as much as this.
    #[must_use]
    pub fn log(mut self, level: &str) -> Self {
        self.log = Some(level.to_owned());
        self
    }

    /// Takes a capability from it, such as `sys_admin`.
    #[must_use]
    pub fn without(mut self, capability: &str) -> Self {
        self.lacks = Some(capability.to_owned());
        self
    }

    /// Where applications will call it.
    pub fn address(&self) -> SocketAddr {
        self.app
    }

    /// Where other agents will connect to.
    pub fn tunnel_address(&self) -> SocketAddr {
        self.tunnel
    }

    /// Its name.
    pub fn agent_name(&self) -> &str {
        &self.name
    }

    /// Where it is configured from.
    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("moa.toml")
    }

    /// Starts it, and waits until it serves.
    pub fn start(self) -> Agent {
        let process = self.serve();
        Agent { pid: self.pid(), prepared: self, process, killed: false }
    }

    /// Starts it and expects it to give up at once; returns how it ended and what it said.
    pub fn start_in_vain(self) -> (ExitStatus, String) {
        let mut process = self.spawn();
        let status = process.wait();
        (status, process.log())
    }

    /// Runs a verb of the CLI with its name and run directory.
    pub fn verb(&self, words: &[&str]) -> Outcome {
        let run_dir = self.run_dir.display().to_string();
        let words: Vec<&str> = words.iter().copied().chain(["--name", &self.name, "--run-dir", &run_dir]).collect();
        run_verb(&words)
    }

    /// Removes what an agent that was killed has left in the kernel, where only so many programs can be attached.
    fn clean_kernel(&self) {
        if Path::new("/sys/fs/bpf/moa").join(&self.name).exists() {
            let outcome = self.verb(&["kernel", "uninstall", "--force"]);
            assert!(outcome.status.success() || std::thread::panicking(), "moa kernel uninstall: {}", outcome.stderr);
        }
    }

    fn serve(&self) -> Process {
        let mut process = self.spawn();
        until("the agent to answer PING", || {
            if let Some(status) = process.ended() {
                panic!("the agent ended with {status} at its start");
            }
            let mut client = Client::try_connect(self.app).ok()?;
            client.try_send("*1\r\n$4\r\nPING\r\n").ok()?;
            client.try_read().ok().filter(|reply| *reply == Reply::Simple("PONG".to_owned()))
        });
        process
    }

    /// The agent that has the name now.
    fn pid(&self) -> u32 {
        let lock = self.run_dir.join(&self.name).join("agent.lock");
        let pid = fs::read_to_string(&lock).unwrap_or_else(|error| panic!("{}: {error}", lock.display()));
        pid.trim().parse().unwrap_or_else(|error| panic!("{}: {pid}: {error}", lock.display()))
    }

    fn spawn(&self) -> Process {
        fs::write(self.config_path(), &self.config).expect("writing the agent's configuration");
        let mut command = match &self.lacks {
            None => Command::new(binary()),
            Some(capability) => {
                let mut command = Command::new("setpriv");
                command.args([format!("--bounding-set=-{capability}"), format!("--inh-caps=-{capability}")]).arg(binary());
                command
            }
        };
        command.args(["agent", "--name", &self.name]);
        command.args(self.kernel.iter().flat_map(|mode| ["--kernel", mode]));
        command.args(self.log.iter().flat_map(|level| ["--log", level]));
        command.arg("--config").arg(self.config_path());
        let listen = [("--app-listen", self.app), ("--tunnel-listen", self.tunnel), ("--metrics-listen", self.metrics)];
        for (flag, address) in listen {
            command.args([flag, &address.to_string()]);
        }
        command.arg("--run-dir").arg(&self.run_dir);
        Process::start(&self.name, &mut command, &self.dir.path().join("log"))
    }
}

/// Runs the binary with these words, and nothing else.
pub fn run_verb(words: &[&str]) -> Outcome {
    let output = Command::new(binary()).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("moa {words:?}: {error}"));
    Outcome {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The `moa` binary: `MOA_BIN`, or the one built beside this test.
///
/// # Panics
/// If there is none, with what to do.
pub fn binary() -> PathBuf {
    if let Some(path) = env::var_os("MOA_BIN") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "MOA_BIN is {}, which is no file", path.display());
        return path;
    }
    let mut dir = env::current_exe().expect("the path of this test");
    // target/release/deps/TEST: the binary is one folder up.
    dir.pop();
    dir.pop();
    let path = dir.join("moa");
    assert!(path.is_file(), "{} is missing: run `cargo xtask build` first, or name the binary in MOA_BIN", path.display());
    path
}

/// Whether connections go by way of the kernel: `MOA_TEST_KERNEL`, else on.
fn kernel() -> String {
    env::var("MOA_TEST_KERNEL").unwrap_or_else(|_| "on".to_owned())
}
