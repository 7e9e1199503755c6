use std::{
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, oneshot, watch},
    time::Instant,
};

use super::{
    Address, Error,
    body::{Part, Streamed},
    lane_socket::LaneReader,
    made::{Answer, Begin, Outgoing, Told, Way},
    sending::Sending,
    state::{Names, Phase, State},
};
use crate::frame::{FRAME_MAX, Header, Hello, status};

/// A connection to an agent, as everybody but its own task sees it.
#[derive(Debug, Clone)]
pub(super) struct Link(pub(super) Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) peer: Hello,
    /// A lane that the connection's task does not know of yet.
    pub(super) arrived: Mutex<Option<LaneReader>>,
    /// The lane is over.
    pub(super) lane_over: Notify,
}

/// A call in flight: dropped, it cancels.
#[derive(Debug)]
pub(super) struct Ticket {
    link: Link,
    names: Names,
    by_lane: bool,
    deadline: Option<Instant>,
    over: bool,
}

impl Link {
    pub(super) fn new(state: State, peer: Hello) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            phase: watch::Sender::new(Phase::Open),
            peer,
            arrived: Mutex::default(),
            lane_over: Notify::new(),
        }))
    }

    /// Looks at the state, or changes it in a way that gives nothing to send.
    pub(super) fn look<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut lock(&self.0.state))
    }

    /// Changes the state, and wakes the connection's task: once, however many calls begin before it runs.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.0.state);
        let result = change(&mut state);
        let driver = state.driver.take();
        drop(state);
        if let Some(driver) = driver {
            driver.wake();
        }
        result
    }

    /// Who takes this application when the agent is gone, as it says.
    pub(super) fn siblings(&self) -> Vec<Address> {
        self.0.peer.siblings.iter().map(|address| Address::Tcp(address.to_string())).collect()
    }

    pub(super) fn is_open(&self) -> bool {
        *self.0.phase.borrow() == Phase::Open && self.look(|state| state.phase == Phase::Open)
    }

    /// Waits until no new calls go here.
    pub(super) async fn gone(&self) {
        let _ = self.0.phase.subscribe().wait_for(|phase| *phase != Phase::Open).await;
    }

    pub(super) async fn closed(&self) {
        let _ = self.0.phase.subscribe().wait_for(|phase| *phase == Phase::Closed).await;
    }

    /// Ends the connection once its calls have ended.
    pub(super) fn leave(&self) {
        self.change(|state| {
            if state.phase == Phase::Open {
                state.phase = Phase::Leaving;
            }
        });
    }

    /// Ends the connection now, and the calls on it.
    pub(super) fn close(&self) {
        self.change(|state| {
            if state.phase != Phase::Closed {
                state.phase = Phase::Closing;
            }
        });
    }

    pub(super) fn drain(&self) {
        self.change(State::drain);
    }

    /// Begins a call that is answered.
    pub(super) fn call(
        &self,
        request: Outgoing,
        deadline: Option<Instant>,
        way: Way,
    ) -> Result<(Ticket, oneshot::Receiver<Answer>), Error> {
        let (tell, told) = oneshot::channel();
        let mut state = lock(&self.0.state);
        let Begin { names, by_lane } = state.call(request, Told::Answer(tell), way)?;
        wake_unless(by_lane, state);
        Ok((Ticket { link: self.clone(), names, by_lane, deadline, over: false }, told))
    }

    /// Begins a call that nothing answers.
    pub(super) fn notify(&self, request: Outgoing) -> Result<(Ticket, oneshot::Receiver<Result<(), Error>>), Error> {
        let (tell, told) = oneshot::channel();
        let Begin { names, by_lane } = self.change(|state| state.call(request, Told::Written(tell), Way::Stream))?;
        Ok((Ticket { link: self.clone(), names, by_lane, deadline: None, over: false }, told))
    }

    /// Gives back room for what comes of a call, if it still is in flight.
    pub(super) fn credit(&self, names: Names, word: u32) {
        self.change(|state| {
            // A call that is made has its number only since it left.
            let now = if names.message().to_caller {
                state.taken_mut(names).map(|taken| taken.names)
            } else {
                state.made_mut(names).map(|made| made.names)
            };
            if let Some(names) = now {
                state.give_back(names, Some(word));
            }
        });
    }

    /// Sends the pieces of a body as they come. False if it was cut off; true if it has ended, or the call has.
    pub(super) async fn pump(&self, names: Names, body: &Streamed) -> bool {
        loop {
            let part = poll_fn(|cx| match self.poll_room(names, cx) {
                Poll::Ready(false) => Poll::Ready(None),
                Poll::Ready(true) => body.poll_next(cx).map(Some),
                Poll::Pending => Poll::Pending,
            });
            match part.await {
                None => return true,
                Some(None) => return false,
                Some(Some(Part::Bytes(bytes))) => self.change(|state| state.piece(names, bytes, false)),
                Some(Some(Part::End)) => {
                    self.change(|state| state.piece(names, Bytes::new(), true));
                    return true;
                }
            }
        }
    }

    /// Whether there is room for more of a message; false if its call has ended.
    fn poll_room(&self, names: Names, cx: &Context<'_>) -> Poll<bool> {
        self.look(|state| {
            let waiting = state.outbox.waiting_of(names.message());
            let Some(sending) = state.sending_mut(names) else { return Poll::Ready(false) };
            sending.room = Some(cx.waker().clone());
            if sending.rest.is_empty() && waiting < 2 * FRAME_MAX { Poll::Ready(true) } else { Poll::Pending }
        })
    }

    /// Waits until a call that is served has ended.
    pub(super) fn poll_over(&self, names: Names, cx: &Context<'_>) -> Poll<()> {
        self.look(|state| {
            let Some(taken) = state.taken_mut(names) else { return Poll::Ready(()) };
            if !taken.watchers.iter().any(|watcher| watcher.will_wake(cx.waker())) {
                taken.watchers.push(cx.waker().clone());
            }
            Poll::Pending
        })
    }

    /// Answers a call that is served. False if it has ended before.
    pub(super) fn answer(&self, names: Names, header: Header, meta: Bytes, whole: Option<Bytes>) -> bool {
        let mut state = lock(&self.0.state);
        let Some(by_lane) = state.answer(names, header, meta, whole) else { return false };
        wake_unless(by_lane, state);
        true
    }

    pub(super) fn end_taken(&self, names: Names, cancel: Option<(u32, &str)>) {
        self.change(|state| state.end_taken(names, cancel));
    }
}

impl State {
    fn sending_mut(&mut self, names: Names) -> Option<&mut Sending> {
        if names.message().to_caller {
            self.taken_mut(names)?.sending.as_mut()
        } else {
            self.made_mut(names).map(|made| &mut made.sending)
        }
    }

    fn piece(&mut self, names: Names, bytes: Bytes, last: bool) {
        let piece = self.piece;
        let Self { outbox, made, taken, .. } = self;
        let sending = if names.message().to_caller {
            taken.get_mut(&names.via).filter(|taken| taken.names == names).and_then(|taken| taken.sending.as_mut())
        } else {
            made.get_mut(&names.via).map(|made| &mut made.sending)
        };
        if let Some(sending) = sending {
            (sending.rest, sending.last) = (bytes, last);
            sending.refill(outbox, names, piece);
        }
    }
}

impl Ticket {
    pub(super) fn names(&self) -> Names {
        self.names
    }

    pub(super) fn is_by_lane(&self) -> bool {
        self.by_lane
    }

    /// The call has ended: there is nothing to cancel.
    pub(super) fn end(&mut self) {
        self.over = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.over {
            let late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
            let status = if late { status::TIMEOUT } else { status::CANCELLED };
            self.link.change(|state| state.abandon(self.names, status));
        }
    }
}

/// Wakes the connection's task, unless the lane's socket has taken what there was to send: that leaves it nothing to do.
fn wake_unless(by_lane: bool, mut state: MutexGuard<'_, State>) {
    if by_lane && state.phase == Phase::Open && state.laned.has_sent_all() {
        return;
    }
    let driver = state.driver.take();
    drop(state);
    if let Some(driver) = driver {
        driver.wake();
    }
}

/// No code here leaves a lock with something half done, so a panic elsewhere does not spoil it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
