//! The ring buffer `TRACE`: what the programs decide about the messages of one service, for one reader at a time.

use std::{
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
};

use agent_common::lane::Traced;
use aya::maps::{MapData, RingBuf};
use tokio::io::{Interest, unix::AsyncFd};

use super::Switch;
use crate::{kernel::legs::lock, proxy::LaneTrace};

type Buffer = RingBuf<MapData>;

/// The ring buffer, while nobody reads it.
pub(in crate::kernel) struct Ring(Arc<Mutex<Option<Buffer>>>);

/// Who reads it. Dropped, nothing is traced any more.
struct Reader {
    service: u64,
    /// There until it is dropped.
    buffer: Option<AsyncFd<Buffer>>,
    back: Arc<Mutex<Option<Buffer>>>,
    routing: Arc<Switch>,
    untold: u64,
}

impl Ring {
    pub(in crate::kernel) fn new(buffer: Buffer) -> Self {
        Self(Arc::new(Mutex::new(Some(buffer))))
    }

    /// Traces a service. Needs the runtime that it is called in.
    pub(super) fn open(&self, service: u64, routing: &Arc<Switch>) -> Result<Box<dyn LaneTrace>, String> {
        if service == 0 {
            return Err("the hash of this service is 0, which stands for none: it cannot be traced".into());
        }
        let mut buffer = lock(&self.0).take().ok_or("somebody traces a service already: there is one trace at a time")?;
        // What a former reader did not want any more.
        while buffer.next().is_some() {}
        #[expect(deprecated, reason = "the ring buffer keeps its descriptor open, and the other constructor is an unsafe one")]
        let waited = AsyncFd::try_with_interest(buffer, Interest::READABLE);
        let buffer = match waited {
            Ok(buffer) => buffer,
            Err(error) => {
                let (buffer, error) = error.into_parts();
                *lock(&self.0) = Some(buffer);
                return Err(format!("the ring buffer TRACE cannot be waited for: {error}"));
            }
        };
        let reader =
            Reader { service, buffer: Some(buffer), back: self.0.clone(), routing: routing.clone(), untold: routing.untold() };
        routing.set_traced(service);
        Ok(Box::new(reader))
    }
}

impl LaneTrace for Reader {
    fn poll_next(&mut self, task: &mut Context<'_>) -> Poll<Option<Traced>> {
        let Some(buffer) = &mut self.buffer else { return Poll::Ready(None) };
        loop {
            while let Some(item) = buffer.get_mut().next() {
                // A program that began under a former reader may still show something of another service.
                if let Some(traced) = Traced::of_bytes(&item).filter(|traced| traced.service == self.service) {
                    return Poll::Ready(Some(traced));
                }
            }
            match ready!(buffer.poll_read_ready_mut(task)) {
                Ok(mut readable) => readable.clear_ready(),
                Err(_) => return Poll::Ready(None),
            }
        }
    }

    fn dropped(&mut self) -> u64 {
        let before = std::mem::replace(&mut self.untold, self.routing.untold());
        self.untold.wrapping_sub(before)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.routing.set_traced(0);
        *lock(&self.back) = self.buffer.take().map(AsyncFd::into_inner);
    }
}
