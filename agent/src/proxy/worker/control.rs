//! What a worker is told by the rest of the process.

use std::{collections::BTreeMap, rc::Rc, sync::Arc};

use tokio::sync::{Barrier, mpsc, oneshot};

use super::Worker;
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

/// Does what the rest of the process asks for.
pub(super) async fn obey(worker: &Rc<Worker>, mut control: mpsc::Receiver<Control>) {
    // A send that fails means that nobody waits for the answer any more, which is none of the worker's business.
    while let Some(control) = control.recv().await {
        match control {
            Control::Apply(routes, done) => {
                worker.apply(&routes);
                let _ = done.send(());
            }
            Control::Conns(max, reply) => {
                let _ = reply.send(worker.conns(max));
            }
            Control::Explain(key, call, reply) => {
                let _ = reply.send(worker.explain(&key, &call));
            }
            Control::Views(key, reply) => {
                let _ = reply.send(worker.views(&key));
            }
            Control::Foreign(reply) => {
                let _ = reply.send(worker.foreign_conns());
            }
            Control::SendHome => worker.send_home(),
            Control::Ping(reply) => {
                let _ = reply.send(());
            }
            Control::Namespaces(change) => worker.follow_namespaces(change),
            Control::Retreat(ways) => worker.retreat(ways.as_deref()),
            Control::LetServicesGo(ways) => worker.let_services_go(&ways),
            Control::Advance => worker.return_to_serving(),
            Control::Pressed => worker.tell_agents(),
            Control::Remains(reply) => {
                let _ = reply.send(worker.remains());
            }
            Control::Stop => return,
            Control::Drain(no_callers, done) => {
                let worker = worker.clone();
                tokio::task::spawn_local(async move {
                    worker.drain(&no_callers).await;
                    let _ = done.send(());
                });
            }
        }
    }
}
