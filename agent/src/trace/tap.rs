//! The access log: off until somebody looks on, and then of what they asked for.
//!
//! A worker has a [`Watch`] of each service. While nobody looks on, a call costs one load of a number that nobody writes.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context as Task, Poll, ready},
    time::Duration,
};

use tokio::sync::mpsc::{Receiver, Sender, channel, error::TrySendError};

use super::{Line, Record};

/// Readers at a time: each costs the workers a record of each call, and holds a connection of the admin socket.
const READERS_MAX: usize = 16;
/// Services that are kept at least, whether or not they are gone.
const SWEEP_LEAST: usize = 64;
/// Records that may wait for a reader.
const QUEUE_MAX: usize = 4096;

/// Everybody who looks on, and everybody who is looked at.
#[derive(Debug, Default)]
pub struct Taps {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    readers: Vec<Arc<Reader>>,
    watched: HashMap<Box<str>, Arc<Watched>>,
    /// How many services there are when those are looked for that are gone.
    sweep_at: usize,
    closed: bool,
}

/// Which calls a reader wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Those of a service: of all its groups (`/service/user`), or of one (`/service/user#two`; `/service/user#` is the default group).
    pub service: Option<String>,
    /// Only those that failed.
    pub errors: bool,
    /// Only those that took longer.
    pub slower_than: Option<Duration>,
}

/// There are as many readers as there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{READERS_MAX} others are looking on already: end one of them")]
pub struct TooManyReaders;

/// One service, as the workers see it.
#[derive(Debug, Clone)]
pub struct Watch {
    watched: Arc<Watched>,
}

/// Whoever looks on. Ends it when dropped.
pub struct TapReader {
    lines: Receiver<Arc<Record>>,
    reader: Arc<Reader>,
    /// What was read before it was said that others were dropped.
    held: Option<Arc<Record>>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Watched {
    /// How many readers may want calls of it.
    on: AtomicUsize,
    readers: Mutex<Arc<[Arc<Reader>]>>,
}

#[derive(Debug)]
struct Reader {
    id: u64,
    filter: Filter,
    /// None once it is to end.
    lines: Mutex<Option<Sender<Arc<Record>>>>,
    /// Records that there was no room for, since it was said last.
    dropped: AtomicU64,
}

impl Taps {
    /// Lets somebody look on.
    ///
    /// # Errors
    /// There are as many readers as there may be.
    pub fn open(&self, filter: Filter) -> Result<TapReader, TooManyReaders> {
        self.open_with(filter, QUEUE_MAX)
    }

    fn open_with(&self, filter: Filter, queue_max: usize) -> Result<TapReader, TooManyReaders> {
        let (sender, lines) = channel(queue_max);
        let mut inner = lock(&self.inner);
        if inner.readers.len() >= READERS_MAX {
            return Err(TooManyReaders);
        }
        inner.next += 1;
        let reader = Arc::new(Reader {
            id: inner.next,
            filter,
            lines: Mutex::new((!inner.closed).then_some(sender)),
            dropped: AtomicU64::new(0),
        });
        inner.readers.push(reader.clone());
        inner.publish();
        Ok(TapReader { lines, reader, held: None, inner: self.inner.clone() })
    }

    /// What a worker asks and tells about the calls of a service: `/service/user`, or `/service/user#two` for a group.
    /// Calls of services that are not known belong to `""`, which everybody who looks on sees.
    #[must_use]
    pub fn watch(&self, key: &str) -> Watch {
        let mut inner = lock(&self.inner);
        if let Some(watched) = inner.watched.get(key) {
            return Watch { watched: watched.clone() };
        }
        inner.sweep();
        let watched = Arc::new(Watched { on: AtomicUsize::new(0), readers: Mutex::new(Arc::new([])) });
        watched.publish(key, &inner.readers);
        inner.watched.insert(key.into(), watched.clone());
        Watch { watched }
    }

    /// How many look on.
    #[must_use]
    pub fn readers(&self) -> usize {
        lock(&self.inner).readers.len()
    }

    /// Ends all that look on when they have read what waits for them, as the agent ends.
    pub fn close(&self) {
        let mut inner = lock(&self.inner);
        inner.closed = true;
        for reader in &inner.readers {
            lock(&reader.lines).take();
        }
    }
}

impl Inner {
    /// Forgets services that are gone after a reload, at a cost that is spread over those that come.
    fn sweep(&mut self) {
        if self.watched.len() >= self.sweep_at {
            self.watched.retain(|_, watched| Arc::strong_count(watched) > 1);
            self.sweep_at = self.watched.len() * 2 + SWEEP_LEAST;
        }
    }

    fn publish(&self) {
        for (key, watched) in &self.watched {
            watched.publish(key, &self.readers);
        }
    }
}

impl Watched {
    fn publish(&self, key: &str, readers: &[Arc<Reader>]) {
        let readers: Arc<[_]> = readers.iter().filter(|reader| reader.filter.may_fit(key)).cloned().collect();
        let on = readers.len();
        *lock(&self.readers) = readers;
        self.on.store(on, Relaxed);
    }
}

impl Watch {
    /// Whether anybody looks on: whether a record is worth making.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.watched.on.load(Relaxed) > 0
    }

    /// Shows a call to those who want it. Never waits for them.
    pub fn offer(&self, record: Record) {
        let readers = lock(&self.watched.readers).clone();
        if readers.is_empty() {
            return;
        }
        let record = Arc::new(record);
        for reader in readers.iter().filter(|reader| reader.filter.fits(&record)) {
            reader.offer(&record);
        }
    }
}

impl Reader {
    fn offer(&self, record: &Arc<Record>) {
        let lines = lock(&self.lines);
        let Some(lines) = &*lines else { return };
        if let Err(TrySendError::Full(_)) = lines.try_send(record.clone()) {
            self.dropped.fetch_add(1, Relaxed);
        }
    }
}

impl Filter {
    /// Whether calls of a service can be wanted.
    fn may_fit(&self, key: &str) -> bool {
        let Some(service) = &self.service else { return true };
        let (uri, group) = split(key);
        key.is_empty() || fits(service, uri, group)
    }

    fn fits(&self, record: &Record) -> bool {
        let service = self.service.as_deref();
        service.is_none_or(|service| fits(service, &record.service, record.group.as_deref().unwrap_or_default()))
            && (!self.errors || record.failed())
            && self.slower_than.is_none_or(|least| Duration::from_micros(record.duration_us) > least)
    }
}

/// Whether a service is what a filter names.
fn fits(wanted: &str, uri: &str, group: &str) -> bool {
    match wanted.split_once('#') {
        Some(wanted) => wanted == (uri, group),
        None => wanted == uri,
    }
}

fn split(key: &str) -> (&str, &str) {
    key.split_once('#').unwrap_or((key, ""))
}

impl TapReader {
    /// The next line; none if the agent ends.
    pub async fn next(&mut self) -> Option<Line> {
        std::future::poll_fn(|task| self.poll_next(task)).await
    }

    /// The next line, as a future polls it.
    pub fn poll_next(&mut self, task: &mut Task<'_>) -> Poll<Option<Line>> {
        if let Some(held) = self.held.take() {
            return Poll::Ready(Some(Line::Call(held)));
        }
        let record = ready!(self.lines.poll_recv(task));
        match (self.reader.dropped.swap(0, Relaxed), record) {
            (0, record) => Poll::Ready(record.map(Line::Call)),
            (count, record) => {
                self.held = record;
                Poll::Ready(Some(Line::Dropped { count }))
            }
        }
    }
}

impl Drop for TapReader {
    fn drop(&mut self) {
        let mut inner = lock(&self.inner);
        inner.readers.retain(|reader| reader.id != self.reader.id);
        inner.publish();
    }
}

impl fmt::Debug for TapReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TapReader").field("filter", &self.reader.filter).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;
    use crate::trace::By;

    fn record(service: &str, group: Option<&str>) -> Record {
        Record { service: service.into(), group: group.map(Into::into), ..Record::default() }
    }

    /// What can be read without waiting.
    fn read(reader: &mut TapReader) -> Vec<Line> {
        let mut task = Task::from_waker(Waker::noop());
        let mut lines = Vec::new();
        while let Poll::Ready(Some(line)) = reader.poll_next(&mut task) {
            lines.push(line);
        }
        lines
    }

    fn of_service(service: &str) -> Filter {
        Filter { service: Some(service.into()), ..Filter::default() }
    }

    #[test]
    fn a_service_is_on_while_somebody_looks_on() {
        let taps = Taps::default();
        let [user, two, other] = ["/service/user", "/service/user#two", "/service/other"].map(|key| taps.watch(key));
        let on = || [&user, &two, &other].map(Watch::is_on);
        assert_eq!(on(), [false; 3]);
        let of_user = taps.open(of_service("/service/user")).expect("room");
        assert_eq!(on(), [true, true, false]);
        let of_two = taps.open(of_service("/service/user#two")).expect("room");
        let late = taps.watch("/service/user#three");
        assert!(late.is_on());
        drop(of_user);
        assert_eq!((on(), late.is_on()), ([false, true, false], false));
        drop(of_two);
        assert_eq!(on(), [false; 3]);
        let all = taps.open(Filter::default()).expect("room");
        assert_eq!((on(), taps.readers()), ([true; 3], 1));
        drop(all);
        assert_eq!((on(), taps.readers()), ([false; 3], 0));
    }

    #[test]
    fn the_default_group_can_be_asked_for_alone() {
        let taps = Taps::default();
        let (user, two) = (taps.watch("/service/user"), taps.watch("/service/user#two"));
        let _reader = taps.open(of_service("/service/user#")).expect("room");
        assert!(user.is_on() && !two.is_on());
    }

    #[test]
    fn a_reader_gets_what_it_asked_for() {
        let taps = Taps::default();
        let unknown = taps.watch("");
        let user = taps.watch("/service/user");
        let slow = Filter { slower_than: Some(Duration::from_millis(5)), ..Filter::default() };
        let errors = Filter { errors: true, ..of_service("/service/user") };
        let mut readers =
            [Filter::default(), of_service("/service/user"), errors, slow].map(|filter| taps.open(filter).expect("room"));
        user.offer(record("/service/user", None));
        user.offer(Record { code: 300, ..record("/service/user", None) });
        user.offer(Record { by: By::Mesh, duration_us: 5_000, ..record("/service/user", None) });
        user.offer(Record { duration_us: 5_001, ..record("/service/user", None) });
        assert!(unknown.is_on());
        unknown.offer(Record { code: 501, ..record("/service/none", None) });
        assert_eq!(readers.each_mut().map(|reader| read(reader).len()), [5, 4, 2, 1]);
    }

    #[test]
    fn what_there_is_no_room_for_is_counted() {
        let taps = Taps::default();
        let user = taps.watch("/service/user");
        let mut reader = taps.open_with(Filter::default(), 2).expect("room");
        for code in 0..5 {
            user.offer(Record { code, ..record("/service/user", None) });
        }
        let call = |code| Line::Call(Arc::new(Record { code, ..record("/service/user", None) }));
        assert_eq!(read(&mut reader), [Line::Dropped { count: 3 }, call(0), call(1)]);
        user.offer(Record { code: 7, ..record("/service/user", None) });
        assert_eq!(read(&mut reader), [call(7)]);
    }

    #[test]
    fn the_end_comes_behind_what_waits() {
        let taps = Taps::default();
        let user = taps.watch("/service/user");
        let mut reader = taps.open(Filter::default()).expect("room");
        user.offer(record("/service/user", None));
        taps.close();
        user.offer(record("/service/user", None));
        assert_eq!(read(&mut reader).len(), 1);
        let mut task = Task::from_waker(Waker::noop());
        assert_eq!(reader.poll_next(&mut task), Poll::Ready(None));
        let mut late = taps.open(Filter::default()).expect("room");
        assert_eq!(late.poll_next(&mut task), Poll::Ready(None));
    }

    #[test]
    fn there_are_only_so_many_readers() {
        let taps = Taps::default();
        let mut readers: Vec<_> = (0..READERS_MAX).map(|_| taps.open(Filter::default()).expect("room")).collect();
        assert_eq!(taps.open(Filter::default()).err(), Some(TooManyReaders));
        readers.pop();
        assert!(taps.open(Filter::default()).is_ok());
    }

    #[test]
    fn services_that_are_gone_are_forgotten() {
        let taps = Taps::default();
        for n in 0..1_000 {
            drop(taps.watch(&format!("/service/{n}")));
        }
        assert!(lock(&taps.inner).watched.len() <= SWEEP_LEAST);
        let (one, same) = (taps.watch("/service/a"), taps.watch("/service/a"));
        assert!(Arc::ptr_eq(&one.watched, &same.watched));
    }

    #[test]
    fn workers_and_readers_that_come_and_go_lose_nothing_uncounted() {
        let taps = Arc::new(Taps::default());
        let mut reader = taps.open_with(Filter::default(), 64).expect("room");
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let user = taps.watch("/service/user");
                std::thread::spawn(move || (0..10_000).for_each(|_| user.offer(record("/service/user", None))))
            })
            .collect();
        let (mut seen, mut ended) = (0, false);
        while !ended {
            ended = workers.iter().all(std::thread::JoinHandle::is_finished);
            drop(taps.open(Filter::default()));
            seen += read(&mut reader).iter().map(count).sum::<u64>();
        }
        // What was dropped last is said with what comes next.
        taps.watch("/service/user").offer(record("/service/user", None));
        seen += read(&mut reader).iter().map(count).sum::<u64>();
        assert_eq!(seen, 40_001);
        workers.into_iter().for_each(|worker| worker.join().expect("no panic"));
    }

    fn count(line: &Line) -> u64 {
        match line {
            Line::Dropped { count } => *count,
            _ => 1,
        }
    }
}
