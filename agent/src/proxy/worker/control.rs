//! What a worker is told by the rest of the process.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::{Barrier, oneshot};

use crate::{
    api,
    proxy::{
        away::Ways,
        explain::{Explained, View},
        places::Change,
        routes::Routes,
    },
    rules,
};

/// What it is told.
pub(crate) enum Control {
    /// Take over new routes and bounds.
    Apply(Arc<Routes>, oneshot::Sender<()>),
    /// List connections, at most this many.
    Conns(usize, oneshot::Sender<Vec<api::Conn>>),
    /// Say what becomes of a call to the service with this key; none if there is none.
    Explain(Arc<str>, rules::Told, oneshot::Sender<Option<Explained>>),
    /// Say how the subsets of the service with this key look that calls without a rule go to.
    Views(Arc<str>, oneshot::Sender<Vec<View>>),
    /// Say how many connections come from other nodes, by application.
    Foreign(oneshot::Sender<BTreeMap<String, u64>>),
    /// Have them go home: close them between two calls.
    SendHome,
    /// Answer, to show that the worker is alive.
    Ping(oneshot::Sender<()>),
    /// Follow a change of the namespaces.
    Namespaces(Change),
    /// Take no new connections, finish what is in flight, say when it is done. Services are let go when no worker has
    /// callers any more, which is where the barrier is.
    Drain(Arc<Barrier>, oneshot::Sender<()>),
    /// Ask other agents for no more calls, and those applications to go whose connects go elsewhere.
    Retreat(Option<Arc<Ways>>),
    /// Nobody calls any more: ask services to go whose connects go elsewhere.
    LetServicesGo(Arc<Ways>),
    /// Serve as before.
    Advance,
    /// Say what is left.
    Remains(oneshot::Sender<api::Remains>),
    /// Tell other agents how much there is to bear.
    Pressed,
    /// End.
    Stop,
}
