//! Pods: network namespaces with a file each, in a folder of the test's own, as container runtimes make them.
//!
//! A device in each of them has its other end in a namespace of the test's, where it is seen to go when the kernel has
//! destroyed the pod's.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use agent_common::frame::{Hello, Role};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use crate::{
    Agent, Client, FakeMoa,
    fleet::{Caller, says_name},
    frames::{FramePeer, WIDE},
    netns::Node,
    wait::until_true,
};

/// Where the agent is in each of them.
pub const AGENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 13_000);

/// A folder of files of namespaces.
pub struct Pods {
    folder: TempDir,
    /// Where devices are seen to go.
    outside: Arc<Node>,
}

/// A namespace, which is let go when it is dropped. Its file stays.
pub struct Pod {
    node: Node,
    device: String,
}

impl Pods {
    /// An empty folder.
    pub fn new() -> Self {
        Self::on(Arc::new(Node::new()))
    }

    /// An empty folder, for pods whose devices have their other ends on a node.
    pub fn on(outside: Arc<Node>) -> Self {
        let folder = tempfile::Builder::new().prefix("moa-pods-").tempdir().expect("a temporary directory");
        Self { folder, outside }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The section of a configuration that serves them, and further lines of it.
    pub fn section(&self, more: &str) -> String {
        format!("[namespaces]\nfolder = {:?}\n{more}\n", self.folder())
    }

    /// A file's path.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// A namespace with a file.
    pub fn pod(&self, name: &str) -> Pod {
        let pod = self.unnamed();
        self.touch(name);
        self.mount(name, &pod);
        pod
    }

    /// A namespace without one.
    pub fn unnamed(&self) -> Pod {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let device = format!("pod{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let node = Node::new();
        self.outside.run("ip", &["link", "add", &device, "type", "veth", "peer", "name", "eth9", "netns", &node.path()]);
        Pod { node, device }
    }

    /// Makes an empty file.
    pub fn touch(&self, name: &str) {
        File::create_new(self.path(name)).expect("a file for a namespace");
    }

    /// Gives a file that is there to a namespace.
    pub fn mount(&self, name: &str, pod: &Pod) {
        let none = None::<&str>;
        mount(Some(pod.node.path().as_str()), &self.path(name), none, MsFlags::MS_BIND, none).expect("mounting a namespace");
    }

    /// Takes the namespace off its file.
    pub fn unmount(&self, name: &str) {
        umount2(&self.path(name), MntFlags::MNT_DETACH).expect("unmounting a namespace");
    }

    /// Removes a file, as `ip netns delete` does.
    pub fn remove(&self, name: &str) {
        self.unmount(name);
        fs::remove_file(self.path(name)).expect("removing the file of a namespace");
    }

    /// Whether the namespace that once was this pod still is.
    pub fn exists(&self, device: &str) -> bool {
        self.outside.inside(|| {
            let shown = Command::new("ip").args(["link", "show", device]).output().expect("this test needs ip: install iproute2");
            shown.status.success()
        })
    }

    /// Lets a pod go that has no file any more, and waits until the kernel has destroyed it.
    pub fn await_end(&self, pod: Pod) {
        let device = pod.device.clone();
        drop(pod);
        until_true("a namespace to be destroyed", || !self.exists(&device));
    }
}

impl Default for Pods {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        for file in fs::read_dir(self.folder()).into_iter().flatten().flatten() {
            // Not every file has a namespace.
            while umount2(&file.path(), MntFlags::MNT_DETACH).is_ok() {}
        }
    }
}

impl Pod {
    /// The name of the device by which it is seen from outside.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Gives it an address, by which the node reaches it, and it the node and everything beyond.
    pub fn join(&self, node: &Node, address: Ipv4Addr) {
        /// What each pod takes its node for.
        const GATEWAY: &str = "169.254.1.1";
        let own = format!("{address}/32");
        self.node.run("ip", &["address", "add", &own, "dev", "eth9"]);
        self.node.run("ip", &["link", "set", "eth9", "up"]);
        node.run("ip", &["link", "set", &self.device, "up"]);
        node.run("ip", &["address", "add", &format!("{GATEWAY}/32"), "dev", &self.device]);
        node.run("ip", &["route", "add", &own, "dev", &self.device]);
        self.node.run("ip", &["route", "add", GATEWAY, "dev", "eth9", "scope", "link"]);
        self.node.run("ip", &["route", "add", "default", "via", GATEWAY, "dev", "eth9"]);
    }

    /// Runs something there.
    pub fn inside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        self.node.inside(run)
    }

    /// Waits until the agent listens there.
    pub fn await_agent(&self) {
        until_true("the agent to listen in a namespace", || self.inside(|| Client::try_connect(AGENT).is_ok()));
    }

    /// A Redis client there.
    pub fn client(&self) -> Client {
        self.await_agent();
        self.inside(|| Client::connect(AGENT))
    }

    /// A Redis client and one that speaks frames, who call themselves so.
    pub fn callers(&self, application: &str) -> [Caller; 2] {
        let mut client = self.client();
        client.command(&["CLIENT", "SETNAME", application]);
        let hello = Hello::new(Role::Application, application, &format!("{application}-1"), WIDE);
        [Caller::Redis(Box::new(client)), Caller::Frames(Box::new(self.greet(&hello)))]
    }

    /// One that speaks frames there.
    pub fn greet(&self, hello: &Hello) -> FramePeer {
        self.await_agent();
        self.inside(|| FramePeer::connect(AGENT, hello))
    }

    /// A server there that answers with its name.
    pub fn server(&self, address: SocketAddr, name: &str) -> FakeMoa {
        let fake = self.inside(|| FakeMoa::builder().at(address).start());
        says_name(&fake, name);
        fake
    }
}

/// What an agent says of a namespace, by its name.
pub fn shown(agent: &Agent, name: &str) -> Option<serde_json::Value> {
    let all = agent.json(&["namespaces"]);
    all.as_array().into_iter().flatten().find(|namespace| namespace["name"] == name).cloned()
}

/// Waits until the agent serves so many namespaces, and no others.
pub fn await_served(agent: &Agent, count: u64) {
    until_true(&format!("{count} namespaces to be served"), || agent.json(&["status"])["namespaces"]["served"] == count);
}
