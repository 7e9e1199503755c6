//! A model of one connection. The property tests and the fuzz target share it: it takes any bytes as operations, and panics
//! if anything comes out that a plain list of messages would not.
//!
//! The first eight bytes say the windows of both ends and their habits; four bytes each are an operation.

mod connection;
mod incoming;
mod message;
mod outgoing;
mod side;

use agent_common::frame::{FRAME_MAX, WINDOW_MAX, WINDOW_MIN, Windows};
use connection::{Connection, Shape};

/// The second end of the connection, in an operation's first byte.
const SECOND: u8 = 0x80;
/// What a header and a body may have at most, so that sizes reach over the end of a frame.
const SIZES: [usize; 12] = [0, 1, 60, 1000, 2008, 2009, 4016, 4056, 4057, 16_000, 40_000, FRAME_MAX];

/// Runs the operations, and then either lets everything arrive or breaks the connection.
pub(crate) fn check(bytes: &[u8]) {
    let (operations, _) = bytes.as_chunks::<4>();
    let [first, second, operations @ ..] = operations else { return };
    let mut connection = Connection::new([windows(*first), windows(*second)], first[3], second[3]);
    for operation in operations {
        operate(&mut connection, *operation);
        connection.check();
        if connection.flooded {
            break;
        }
    }
    if connection.flooded || second[3] & 0x10 != 0 {
        connection.break_down();
    } else {
        connection.drain();
        connection.finish();
        connection.drain();
        connection.check_arrived();
    }
}

/// Windows of any size from the smallest on, more often close to it.
fn windows([stream, connection, fine, _]: [u8; 4]) -> Windows {
    let size = |coarse: u8| match coarse % 8 {
        0..=2 => WINDOW_MIN + u32::from(fine) * u32::from(coarse / 8),
        3 => WINDOW_MIN + u32::from(coarse) * 1000 + u32::from(fine),
        4 | 5 => 4 * WINDOW_MIN - 128 + u32::from(fine) + u32::from(coarse) * 100 * u32::from(coarse % 2),
        6 => u32::from(coarse).max(1) << 20,
        _ => WINDOW_MAX - u32::from(fine),
    };
    Windows { stream: size(stream), connection: size(connection) }
}

fn operate(connection: &mut Connection, [kind, a, b, c]: [u8; 4]) {
    let side = usize::from(kind & SECOND != 0);
    let shape = Shape { size: SIZES[usize::from(b) % SIZES.len()], meta: meta_len(c), end: c & 1 == 0, at_once: c & 2 == 0 };
    match kind % 16 {
        0 | 1 => connection.begin(side, shape, a),
        2 | 3 => connection.more(side, a, SIZES[usize::from(b) % SIZES.len()], 1 + c % 4, c & 0x70 == 0),
        4 => connection.answer(side, shape, a),
        5 => connection.cancel(side, a, c),
        6..=8 => drop(connection.write(side, amount(b, c), 1 + usize::from(a) % 8)),
        9..=11 => drop(connection.deliver(side, amount(b, c))),
        12 => connection.take(side, a, amount(b, c)),
        13 => connection.give_back(side, a & 1 != 0),
        14 if b < 64 => connection.flood(side, usize::from(a), c),
        15 if b < 16 => connection.go_away(side, c & 3 == 0),
        _ => {
            connection.write(side, usize::MAX, 1 + usize::from(a) % 8);
            connection.deliver(1 - side, usize::MAX);
        }
    }
}

/// Metadata is mostly small.
fn meta_len(c: u8) -> usize {
    match c >> 2 {
        0..=31 => 0,
        32..=55 => usize::from(c),
        56..=61 => usize::from(c) * 20,
        _ => 32_728,
    }
}

fn amount(b: u8, c: u8) -> usize {
    match b % 4 {
        0 => usize::from(c),
        1 => usize::from(b) << 8 | usize::from(c),
        2 => 200_000 + usize::from(c),
        _ => usize::MAX,
    }
}
