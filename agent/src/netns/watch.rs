//! Tells when a folder may have changed.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    path::Path,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::{Interest, unix::AsyncFd};

/// What may concern the files of namespaces. That one is mounted on a file is not told.
const EVENTS: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);

/// Watches one folder at a time.
pub(crate) struct Watcher {
    inotify: AsyncFd<Events>,
    watched: Option<WatchDescriptor>,
}

struct Events(Inotify);

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watcher {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// The kernel gives no more of them (`fs.inotify.max_user_instances`).
    pub(crate) fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        #[expect(deprecated, reason = "inotify keeps its descriptor open, but the safe way needs it to say so by AsFd")]
        Ok(Self { inotify: AsyncFd::with_interest(Events(inotify), Interest::READABLE)?, watched: None })
    }

    /// Watches what this folder is now, and nothing else. One that is not there is not watched.
    pub(crate) fn follow(&mut self, folder: Option<&Path>) {
        let inotify = &self.inotify.get_ref().0;
        // The same folder is the same watch.
        let next = folder.and_then(|folder| inotify.add_watch(folder, EVENTS).ok());
        if let Some(former) = self.watched.filter(|former| Some(*former) != next) {
            // It is gone already if the folder is.
            let _ = inotify.rm_watch(former);
        }
        self.watched = next;
    }

    /// Resolves when something has happened.
    pub(crate) async fn changed(&self) {
        while let Ok(mut ready) = self.inotify.readable().await {
            let read = ready.try_io(|inotify| Ok(inotify.get_ref().0.read_events()?));
            match read {
                Err(_would_block) => {}
                Ok(Ok(_)) => return,
                Ok(Err(_)) => break,
            }
        }
        // Without it, it is looked from time to time.
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use tokio::time::timeout;

    use super::*;

    async fn is_told(watcher: &Watcher) -> bool {
        let told = timeout(Duration::from_secs(5), watcher.changed()).await.is_ok();
        while timeout(Duration::from_millis(1), watcher.changed()).await.is_ok() {}
        told
    }

    #[tokio::test]
    async fn a_folder_that_comes_and_goes() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("netns");
        let mut watcher = Watcher::new().unwrap();
        watcher.follow(Some(&folder));
        for _ in 0..3 {
            fs::create_dir(&folder).unwrap();
            watcher.follow(Some(&folder));
            watcher.follow(Some(&folder));
            fs::write(folder.join("a"), "").unwrap();
            assert!(is_told(&watcher).await);
            fs::remove_file(folder.join("a")).unwrap();
            assert!(is_told(&watcher).await);
            fs::remove_dir(&folder).unwrap();
            assert!(is_told(&watcher).await);
            watcher.follow(Some(&folder));
        }
        watcher.follow(None);
    }
}
