//! A stream in which every eight bytes say where they belong, so that a byte that is lost, doubled, moved, damaged or of
//! another stream is found where it is, and the text says what is there instead.

use std::{
    io::{ErrorKind, Read, Write},
    time::{Duration, Instant},
};

use rand::{RngExt, rngs::StdRng};

use crate::PATIENCE;

/// How large the pieces are at most in which a stream is read.
const READ_MAX: usize = 128 << 10;

/// One direction of a connection: the end that sends makes the bytes with it, the end that receives checks them.
#[derive(Debug, Clone)]
pub struct Stamps {
    stream: u64,
    at: u64,
}

impl Stamps {
    /// The stream with this number, from its beginning.
    pub const fn of(stream: u64) -> Self {
        Self { stream, at: 0 }
    }

    /// How many bytes were made, or checked.
    pub const fn at(&self) -> u64 {
        self.at
    }

    /// The next bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        let skip = usize::try_from(self.at % 8).expect("less than 8");
        let (first, rest) = bytes.split_at_mut(bytes.len().min((8 - skip) % 8));
        first.copy_from_slice(&stamp(self.stream, self.at / 8)[skip..skip + first.len()]);
        let number = self.at.div_ceil(8);
        for (bytes, number) in rest.chunks_mut(8).zip(number..) {
            bytes.copy_from_slice(&stamp(self.stream, number)[..bytes.len()]);
        }
        self.at += bytes.len() as u64;
    }

    /// So many of the next bytes.
    pub fn make(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.fill(&mut bytes);
        bytes
    }

    /// Expects these to be the next bytes.
    ///
    /// # Panics
    /// If they are not, with where they belong, if anywhere.
    pub fn check(&mut self, bytes: &[u8]) {
        let from = self.at;
        let expected = self.make(bytes.len());
        if bytes == expected {
            return;
        }
        let Some(wrong) = bytes.iter().zip(&expected).position(|(got, expected)| got != expected) else { return };
        panic!("stream {}: byte {} is wrong: {}", self.stream, from + wrong as u64, self.found(&bytes[wrong..]));
    }

    /// What the bytes are instead, by the first whole word that one of the streams could have.
    fn found(&self, bytes: &[u8]) -> String {
        let places = (0..8).filter_map(|skip| {
            let word = bytes.get(skip..)?.first_chunk()?;
            let number = place(self.stream, *word);
            (number < 1 << 40).then(|| format!("it is byte {} of this stream", (number * 8).wrapping_sub(skip as u64)))
        });
        places.into_iter().next().unwrap_or_else(|| "it is of no place in this stream".into())
    }

    /// Writes so many bytes in pieces of random sizes.
    ///
    /// # Panics
    /// If the socket does not take them.
    pub fn send(&mut self, to: &mut impl Write, count: u64, piece_max: usize, rng: &mut StdRng) {
        let end = self.at + count;
        let mut buffer = vec![0; piece_max];
        while self.at < end {
            let piece = usize::try_from(end - self.at).unwrap_or(usize::MAX).min(rng.random_range(1..=piece_max));
            let (at, bytes) = (self.at, &mut buffer[..piece]);
            self.fill(bytes);
            to.write_all(bytes).unwrap_or_else(|error| panic!("stream {}: {piece} bytes at {at}: {error}", self.stream));
        }
    }

    /// Reads so many bytes, in pieces of random sizes, and checks them; `has_read` is told of each piece.
    ///
    /// # Panics
    /// If they are others, or end too early, or do not come.
    pub fn receive(&mut self, from: &mut impl Read, count: u64, rng: &mut StdRng, mut has_read: impl FnMut(usize)) {
        let end = self.at + count;
        let mut buffer = vec![0; READ_MAX];
        while self.at < end {
            let most = usize::try_from(end - self.at).unwrap_or(usize::MAX).min(rng.random_range(1..=READ_MAX));
            match read(from, &mut buffer[..most]) {
                0 => panic!("stream {}: it ended after {} bytes, {} were to come", self.stream, self.at, end - self.at),
                read => {
                    self.check(&buffer[..read]);
                    has_read(read);
                }
            }
        }
    }

    /// Reads to the end of the stream, and gives how many bytes there were.
    ///
    /// # Panics
    /// If a byte is wrong.
    pub fn receive_to_end(&mut self, from: &mut impl Read) -> u64 {
        let (began, mut buffer) = (self.at, vec![0; READ_MAX]);
        loop {
            match read(from, &mut buffer) {
                0 => return self.at - began,
                read => self.check(&buffer[..read]),
            }
        }
    }
}

/// Reads what there is, and waits for it as long as a test is patient.
fn read(from: &mut impl Read, buffer: &mut [u8]) -> usize {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match from.read(buffer) {
            Ok(read) => return read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                assert!(Instant::now() < deadline, "nothing came for {PATIENCE:?}");
                std::thread::sleep(Duration::from_micros(100));
            }
            Err(error) => panic!("the socket cannot be read: {error}"),
        }
    }
}

/// The eight bytes at this place of a stream. No two places of a stream have the same.
fn stamp(stream: u64, number: u64) -> [u8; 8] {
    let mut word = number ^ stream.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    word = word.wrapping_mul(MULTIPLIER);
    word ^= word >> 32;
    word.wrapping_mul(MULTIPLIER).to_le_bytes()
}

/// Where a stream would have these eight bytes.
fn place(stream: u64, stamp: [u8; 8]) -> u64 {
    let mut word = u64::from_le_bytes(stamp).wrapping_mul(INVERSE);
    word ^= word >> 32;
    word.wrapping_mul(INVERSE) ^ stream.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

const MULTIPLIER: u64 = 0xD6E8_FEB8_6659_FD93;
/// What undoes a multiplication with it. Each step doubles the number of bits that are right.
const INVERSE: u64 = {
    let mut inverse = MULTIPLIER;
    let mut step = 0;
    while step < 5 {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(MULTIPLIER.wrapping_mul(inverse)));
        step += 1;
    }
    inverse
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_say_where_they_belong() {
        for (stream, number) in [(0, 0), (1, 7), (u64::MAX, 1 << 39)] {
            assert_eq!(place(stream, stamp(stream, number)), number);
        }
        let mut pieces = Stamps::of(5);
        let bytes = [pieces.make(3), pieces.make(0), pieces.make(13)].concat();
        assert_eq!(bytes, Stamps::of(5).make(16));
        Stamps::of(5).check(&bytes);
    }

    #[test]
    #[should_panic(expected = "byte 16 is wrong: it is byte 24 of this stream")]
    fn a_gap_is_found() {
        let mut bytes = Stamps::of(9).make(64);
        bytes.drain(16..24);
        Stamps::of(9).check(&bytes);
    }

    #[test]
    #[should_panic(expected = "byte 0 is wrong: it is of no place in this stream")]
    fn another_stream_is_found() {
        Stamps::of(1).check(&Stamps::of(2).make(64));
    }
}
