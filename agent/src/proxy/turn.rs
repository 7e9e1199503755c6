//! How tasks of one worker give each other work.

use std::{
    cell::{Cell, RefCell},
    task::{Context, Waker},
};

/// The task that serves a connection, for those who have work for it.
#[derive(Debug, Default)]
pub(crate) struct Task {
    waker: RefCell<Option<Waker>>,
    on_turn: Cell<bool>,
}

impl Task {
    /// Runs the task's turn: whoever has work for it meanwhile need not wake it, as it looks once more at its end.
    pub(crate) fn turn<T>(&self, cx: &mut Context<'_>, turn: impl FnOnce(&mut Context<'_>) -> T) -> T {
        if !self.waker.borrow().as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker.replace(Some(cx.waker().clone()));
        }
        self.on_turn.set(true);
        let result = turn(cx);
        self.on_turn.set(false);
        result
    }

    /// Has the task look at what there is for it.
    pub(crate) fn wake(&self) {
        if !self.on_turn.get()
            && let Some(waker) = &*self.waker.borrow()
        {
            waker.wake_by_ref();
        }
    }

    /// For those who wait for something else on its behalf.
    pub(crate) fn waker(&self) -> Option<Waker> {
        self.waker.borrow().clone()
    }
}

/// Tasks that wait for the same thing.
#[derive(Debug, Default)]
pub(crate) struct Waiters(RefCell<Vec<Waker>>);

impl Waiters {
    /// Has a task woken with the others, once.
    pub(crate) fn add(&self, task: &Task) {
        let mut waiting = self.0.borrow_mut();
        if let Some(waker) = task.waker()
            && !waiting.iter().any(|other| other.will_wake(&waker))
        {
            waiting.push(waker);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// It has come: all are woken, and forgotten.
    pub(crate) fn wake(&self) {
        std::mem::take(&mut *self.0.borrow_mut()).into_iter().for_each(Waker::wake);
    }
}
