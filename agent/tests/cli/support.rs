//! Agents in processes of their own, a small MOA server for them to call, and what verbs print.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU16, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take that a test waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What a verb printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }
}

/// The binary, with no agent and no configuration of this machine in its way.
pub(crate) fn moa(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moa"));
    command.args(words).env_remove("MOA_NAME").env_remove("MOA_CONFIG").env_remove("MOA_RUN_DIR").stdin(Stdio::null());
    command
}

/// Runs a verb to its end.
pub(crate) fn run(command: &mut Command) -> Outcome {
    let output = command.output().expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Outcome { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Waits until `look` finds something.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Some(found) => return found,
            None => assert!(Instant::now() < deadline, "waited in vain for {what}"),
        }
        thread::park_timeout(Duration::from_millis(10));
    }
}

/// An address that nobody has, below the ports that the kernel gives out by itself.
pub(crate) fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 9_000).expect("below 9000");
    until("a free port", || {
        let offset = NEXT.fetch_add(1, Relaxed);
        let address = SocketAddr::from(([127, 0, 0, 1], 22_000 + (first + offset) % 10_000));
        TcpListener::bind(address).is_ok().then_some(address)
    })
}

/// A server of the service /service/demo: `hang` is never answered, `bad` is an error, all else gives its arguments back.
pub(crate) fn demo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer_all(stream));
        }
    });
    address
}

fn answer_all(mut stream: TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let count = number(&mut reader)?;
        let words: Vec<Vec<u8>> = (0..count).map(|_| word(&mut reader)).collect::<Option<_>>()?;
        if words[0].eq_ignore_ascii_case(b"PING") {
            stream.write_all(b"+PONG\r\n").ok()?;
            continue;
        }
        let call: Value = serde_json::from_slice(words.get(1)?).ok()?;
        let ec = match call["params"]["m"].as_str()? {
            "hang" => continue,
            "bad" => 300,
            _ => 0,
        };
        let body = serde_json::json!({ "ec": ec, "em": "", "result": call["params"]["args"] }).to_string();
        write!(stream, "${}\r\n{body}\r\n", body.len()).ok()?;
    }
}

/// The number behind the first byte of a line.
fn number(reader: &mut impl BufRead) -> Option<usize> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    line.get(1..)?.trim_end().parse().ok()
}

fn word(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut word = vec![0; number(reader)? + 2];
    reader.read_exact(&mut word).ok()?;
    word.truncate(word.len() - 2);
    Some(word)
}

/// An agent.
pub(crate) struct Agent {
    /// Its parent.
    child: Child,
    pid: u32,
    pub(crate) files: TempDir,
    pub(crate) app: SocketAddr,
    pub(crate) tunnel: SocketAddr,
    pub(crate) metrics: SocketAddr,
}

impl Agent {
    /// Starts an agent with this configuration, and waits until it serves.
    pub(crate) fn start(config: &str) -> Self {
        let files = tempfile::tempdir().expect("a folder");
        fs::write(files.path().join("moa.toml"), config).expect("written");
        Self::start_in(files)
    }

    /// Starts an agent with the configuration in a folder.
    pub(crate) fn start_in(files: TempDir) -> Self {
        let (app, tunnel, metrics) = (free_address(), free_address(), free_address());
        let child = command(files.path(), app, tunnel, metrics).spawn().expect("the binary runs");
        let mut agent = Self { child, pid: 0, files, app, tunnel, metrics };
        until("the agent to serve", || {
            if let Some(status) = agent.child.try_wait().expect("a child") {
                panic!("the agent ended with {status}: {}", agent.log());
            }
            agent.moa(&["status"]).code.filter(|code| *code == 0)
        });
        let pid = fs::read_to_string(agent.files.path().join("run/test/agent.lock")).expect("the file of its name");
        agent.pid = pid.trim().parse().expect("its number");
        agent
    }

    /// The configuration of one service whose only instance is this server.
    pub(crate) fn config(server: SocketAddr) -> String {
        format!("[services.\"/service/demo\"]\ninstances = [\"{server}\"]\n")
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        self.files.path().join("moa.toml")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.files.path().join("run/test/agent.sock")
    }

    /// Runs a verb against it.
    pub(crate) fn moa(&self, words: &[&str]) -> Outcome {
        let run_dir = self.files.path().join("run");
        run(moa(words).args(["--name", "test", "--run-dir"]).arg(run_dir))
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.files.path().join("log")).unwrap_or_default()
    }

    /// Of the agent itself.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends its parent a signal, as an operator does.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("it runs");
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        until("the agent to end", || child.try_wait().expect("a child"))
    }

    /// Kills it, and gives what it left.
    pub(crate) fn kill(mut self) -> TempDir {
        kill(Pid::from_raw(self.pid.cast_signed()), Signal::SIGKILL).expect("it runs");
        self.wait();
        std::mem::replace(&mut self.files, tempfile::tempdir().expect("a folder"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command that starts an agent named `test`, with its files in `folder`.
pub(crate) fn command(folder: &Path, app: SocketAddr, tunnel: SocketAddr, metrics: SocketAddr) -> Command {
    let log = fs::File::create(folder.join("log")).expect("made");
    let mut command = moa(&["agent", "--name", "test", "--kernel", "off"]);
    command.arg("--config").arg(folder.join("moa.toml")).arg("--run-dir").arg(folder.join("run"));
    let listen = [("--app-listen", app), ("--tunnel-listen", tunnel), ("--metrics-listen", metrics)];
    for (flag, address) in listen {
        command.args([flag, &address.to_string()]);
    }
    command.stderr(log);
    command
}

/// The status and the body of a GET.
pub(crate) fn http_get(address: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: moa\r\n{headers}\r\n").expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no HTTP: {text}"));
    (status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}
