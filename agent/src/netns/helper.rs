//! The thread that makes sockets in other namespaces than the agent's.
//!
//! Which namespace a socket is in is decided by the thread that makes it. Workers never leave their own: this thread goes
//! there for them, and comes back at once, as a thread in a namespace keeps it alive.

use std::{fs::File, io, os::fd::OwnedFd, sync::Arc, thread};

use nix::sched::{CloneFlags, setns};
use tokio::sync::{mpsc, oneshot};

/// What may wait for the thread; beyond that, whoever asks waits.
const JOBS_MAX: usize = 1024;

/// The way to the thread, which ends with the last of them.
#[derive(Debug, Clone)]
pub(crate) struct Helper {
    jobs: mpsc::Sender<Job>,
}

struct Job {
    namespace: Arc<OwnedFd>,
    /// Is told whether the thread could enter.
    run: Box<dyn FnOnce(io::Result<()>) + Send>,
}

impl Helper {
    /// Starts the thread, whose home is the namespace of the calling one.
    ///
    /// # Errors
    /// There can't be another thread, or `/proc` is not there.
    pub(crate) fn start() -> io::Result<Self> {
        let home = File::open("/proc/thread-self/ns/net")?;
        let (jobs, waiting) = mpsc::channel(JOBS_MAX);
        thread::Builder::new().name("moa-netns".to_owned()).spawn(move || serve(&home, waiting))?;
        Ok(Self { jobs })
    }

    /// Runs something in a namespace. It must not wait for anything.
    ///
    /// # Errors
    /// The namespace can't be entered, or what runs there fails.
    pub(crate) async fn inside<T: Send + 'static>(
        &self,
        namespace: Arc<OwnedFd>,
        run: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (reply, answered) = oneshot::channel();
        let run = move |entered: io::Result<()>| {
            // Whoever asked may have given up: then what was made is closed here.
            drop(reply.send(entered.and_then(|()| run())));
        };
        self.jobs.send(Job { namespace, run: Box::new(run) }).await.map_err(|_| ended())?;
        answered.await.unwrap_or_else(|_| Err(ended()))
    }
}

fn serve(home: &File, mut jobs: mpsc::Receiver<Job>) {
    while let Some(Job { namespace, run }) = jobs.blocking_recv() {
        let entered = setns(&*namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        let is_away = entered.is_ok();
        run(entered);
        if is_away && let Err(error) = setns(home, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%error, "the thread that makes sockets in namespaces can't come back from one: it ends");
            return;
        }
    }
}

fn ended() -> io::Error {
    io::Error::other("the thread that makes sockets in namespaces has ended: restart the agent")
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::netns::thread::{cookie, enter_new};

    /// A namespace that nobody else is in, with its cookie.
    fn new_namespace() -> (Arc<OwnedFd>, u64) {
        let made = thread::spawn(|| {
            enter_new().expect("this test makes a network namespace: run it as root");
            (File::open("/proc/thread-self/ns/net").unwrap(), cookie().unwrap())
        });
        let (file, cookie) = made.join().unwrap();
        (Arc::new(file.into()), cookie)
    }

    #[tokio::test]
    async fn sockets_are_made_where_they_belong() {
        let helper = Helper::start().unwrap();
        let (namespace, there) = new_namespace();
        let listener = helper.inside(namespace.clone(), || TcpListener::bind("127.0.0.1:0")).await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(TcpStream::connect(address).is_err(), "it is not in this namespace");
        helper.inside(namespace.clone(), move || TcpStream::connect(address)).await.unwrap();
        assert_eq!(helper.inside(namespace, cookie).await.unwrap(), there);
        assert_ne!(cookie().unwrap(), there);
    }

    #[tokio::test]
    async fn what_is_no_namespace_is_not_entered() {
        let helper = Helper::start().unwrap();
        let file: Arc<OwnedFd> = Arc::new(File::open("/proc/self/ns/uts").unwrap().into());
        let error = helper.inside(file, || Ok(())).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let (namespace, there) = new_namespace();
        assert_eq!(helper.inside(namespace, cookie).await.unwrap(), there, "it goes on");
    }
}
