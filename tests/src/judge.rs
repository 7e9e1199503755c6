//! The judge: it knows which answer belongs to which call, so that a swapped, lost, doubled or damaged one is found.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::Value;

use crate::{envelope, resp::Reply};

/// The number of the next call, of all judges of this process.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Hands out calls of `echo`, each with a text that no other call of this process has.
#[derive(Clone, Copy, Default)]
pub struct Judge;

/// One call that the judge handed out.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The JSON to send.
    pub json: String,
    text: String,
}

/// What the judge finds about an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is the right one.
    Right,
    /// It is an error, with its code and text.
    Failed(i64, String),
}

impl Judge {
    /// A call of `service` whose text is at least `size` bytes.
    pub fn ask(&self, service: &str, size: usize) -> Ask {
        let text = text(NEXT.fetch_add(1, Ordering::Relaxed), size);
        Ask { json: envelope(service, "echo", &format!("\"{text}\"")), text }
    }

    /// A call of `service`, which is a [`mixed`](crate::mixed) one, whose answer is so many times as long as its request.
    pub fn ask_repeated(&self, service: &str, size: usize, times: usize) -> Ask {
        let text = text(NEXT.fetch_add(1, Ordering::Relaxed), size);
        Ask { json: envelope(service, "repeat", &format!("\"{text}\",{times}")), text: text.repeat(times) }
    }
}

impl Ask {
    /// What the answer to it is worth.
    ///
    /// # Panics
    /// If it is a success that belongs to another call, or no answer that MOA knows.
    pub fn judge(&self, reply: &Reply) -> Verdict {
        let value: Value = serde_json::from_slice(reply.bulk())
            .unwrap_or_else(|error| panic!("an answer that is no JSON ({error}): {}", reply.brief()));
        let code = value["ec"].as_i64().unwrap_or_else(|| panic!("an answer without ec: {}", reply.brief()));
        if code != 0 && code != 200 {
            return Verdict::Failed(code, value["em"].as_str().unwrap_or_default().to_owned());
        }
        let got = value["result"].as_str().unwrap_or_else(|| panic!("an answer without result: {}", reply.brief()));
        assert!(got == self.text, "a WRONG answer: asked {}, got {}", brief(&self.text), brief(got));
        Verdict::Right
    }

    /// Like [`Ask::judge`], but only the right answer will do.
    ///
    /// # Panics
    /// If it is any other.
    pub fn expect_right(&self, reply: &Reply) {
        let verdict = self.judge(reply);
        assert_eq!(verdict, Verdict::Right, "the answer to {}", brief(&self.text));
    }

    /// The part of the text that no other call has.
    pub fn id(&self) -> &str {
        id_of(&self.text)
    }
}

/// Counts how often each call was executed, over all servers that share it.
#[derive(Clone, Default)]
pub struct Ledger {
    executed: Arc<Mutex<HashMap<String, u32>>>,
}

impl Ledger {
    /// Enters one execution of the call with this text.
    pub fn enter(&self, text: &str) {
        let mut executed = self.executed.lock().expect("the ledger");
        *executed.entry(id_of(text).to_owned()).or_default() += 1;
    }

    /// How often this call was executed.
    pub fn executions(&self, ask: &Ask) -> u32 {
        self.executed.lock().expect("the ledger").get(ask.id()).copied().unwrap_or(0)
    }

    /// How many different calls were executed.
    pub fn len(&self) -> usize {
        self.executed.lock().expect("the ledger").len()
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Expects that no call was executed twice.
    ///
    /// # Panics
    /// With one that was.
    pub fn expect_none_twice(&self) {
        let executed = self.executed.lock().expect("the ledger");
        let twice = executed.iter().find(|(_, times)| **times > 1);
        assert!(twice.is_none(), "a call was executed twice: {twice:?}");
    }
}

/// Bytes that never repeat within reach, so that one that is lost or doubled moves all the others.
pub fn pattern(size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size);
    let mut state = 1u64;
    while bytes.len() < size {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// `id:letters`, the letters following from the id, so that damage anywhere is seen.
fn text(id: u64, size: usize) -> String {
    let mut text = format!("{id:016x}:");
    let mut state = id.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    while text.len() < size {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        for shift in (0..60).step_by(6) {
            text.push(char::from(b'0' + ((state >> shift) & 0x1f) as u8));
        }
    }
    text.truncate(size.max(17));
    // Letters that JSON would escape stay out, so that the text reads the same in every answer.
    text.replace(['<', '>', '='], "_")
}

fn id_of(text: &str) -> &str {
    text.get(..16).unwrap_or(text)
}

fn brief(text: &str) -> String {
    format!("{} bytes {}…", text.len(), text.chars().take(40).collect::<String>())
}
