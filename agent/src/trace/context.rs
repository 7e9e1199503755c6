//! W3C trace context: the `traceparent` that a call brings along.
//!
//! <https://www.w3.org/TR/trace-context/#traceparent-header>

use rand::{Rng, RngExt};

/// The number of a trace; never all zero.
pub type TraceId = [u8; 16];
/// The number of a span in its trace; never all zero.
pub type SpanId = [u8; 8];

/// A millionth is what sampling is counted in.
const MILLION: u32 = 1_000_000;
/// The flag that says that the trace is recorded.
const SAMPLED: u8 = 1;
/// The version that is written: the only one there is.
const VERSION: u8 = 0;
/// A version that never is.
const VERSION_INVALID: u8 = 0xff;

/// A place in a trace: the span that what comes is below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Context {
    /// The trace.
    pub trace_id: TraceId,
    /// The span.
    pub span_id: SpanId,
    /// Whether spans of this trace are recorded.
    pub sampled: bool,
}

impl Context {
    /// The bytes of a `traceparent` as it is written.
    pub const TEXT_BYTES: usize = 55;

    /// Reads a `traceparent`; none if it is not one, and then the specification wants it to be as if none had come.
    ///
    /// What comes in a later version is read as far as version 00 goes, if a `-` or nothing follows. Other flags than "sampled" are
    /// not kept, as is said for flags that are not known.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (known, more) = text.split_at_checked(Self::TEXT_BYTES)?;
        let [version] = hex(&known[..2])?;
        match version {
            VERSION if !more.is_empty() => return None,
            VERSION_INVALID => return None,
            _ if !matches!(more.first(), None | Some(b'-')) => return None,
            _ => {}
        }
        if [known[2], known[35], known[52]] != *b"---" {
            return None;
        }
        let (trace_id, span_id, [flags]) = (hex(&known[3..35])?, hex(&known[36..52])?, hex(&known[53..])?);
        let valid = trace_id != TraceId::default() && span_id != SpanId::default();
        valid.then_some(Self { trace_id, span_id, sampled: flags & SAMPLED != 0 })
    }

    /// As a `traceparent` of version 00.
    #[must_use]
    pub fn text(&self) -> [u8; Self::TEXT_BYTES] {
        let mut text = [b'-'; Self::TEXT_BYTES];
        write_hex(&[VERSION], &mut text[..2]);
        write_hex(&self.trace_id, &mut text[3..35]);
        write_hex(&self.span_id, &mut text[36..52]);
        write_hex(&[if self.sampled { SAMPLED } else { 0 }], &mut text[53..]);
        text
    }

    /// Begins a trace.
    pub fn root(sampled: bool, dice: &mut impl Rng) -> Self {
        Self { trace_id: id(dice), span_id: id(dice), sampled }
    }

    /// A span below this one.
    #[must_use]
    pub fn child(&self, dice: &mut impl Rng) -> Self {
        Self { span_id: id(dice), ..*self }
    }

    /// Whether a trace that begins here is recorded, of which `per_million` in a million are.
    pub fn sample(per_million: u32, dice: &mut impl Rng) -> bool {
        // Most agents sample none or all: that needs no dice.
        per_million >= MILLION || (per_million > 0 && dice.random_range(0..MILLION) < per_million)
    }

    /// The trace's number as collectors show it.
    #[must_use]
    pub fn trace(&self) -> String {
        let mut text = [0; 32];
        write_hex(&self.trace_id, &mut text);
        text.iter().copied().map(char::from).collect()
    }
}

/// A number that is not all zero.
fn id<const N: usize>(dice: &mut impl Rng) -> [u8; N] {
    loop {
        let mut id = [0; N];
        dice.fill_bytes(&mut id);
        if id != [0; N] {
            return id;
        }
    }
}

/// Reads lower-case hexadecimal, which is all that the specification allows.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let (pairs, rest) = text.as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

fn digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

fn write_hex(bytes: &[u8], text: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (byte, pair) in bytes.iter().zip(text.as_chunks_mut::<2>().0) {
        *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    }
}

#[cfg(test)]
mod tests {
    use proptest::{array::uniform, prelude::*};
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn parse(text: &str) -> Option<Context> {
        Context::parse(text.as_bytes())
    }

    #[test]
    fn the_example_of_the_specification() {
        let context = parse(EXAMPLE).expect("valid");
        assert_eq!(context.trace(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.span_id, [0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
        assert!(context.sampled);
        assert_eq!(&context.text()[..], EXAMPLE.as_bytes());
    }

    #[test]
    fn what_is_no_traceparent_is_refused() {
        let wrong = [
            "",
            "00",
            &EXAMPLE[..54],
            &format!("{EXAMPLE}0"),
            &format!("{EXAMPLE}-"),
            &format!("{EXAMPLE}-00"),
            &format!(" {EXAMPLE}"),
            &EXAMPLE.replacen("00", "ff", 1),
            &EXAMPLE.replacen("00", "0A", 1),
            &EXAMPLE.replacen("00", "0x", 1),
            &EXAMPLE.replace("4bf92f35", "4BF92F35"),
            &EXAMPLE.replace("4bf92f35", "4bf92f3g"),
            &EXAMPLE.replace('-', "_"),
            &EXAMPLE.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &EXAMPLE.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &EXAMPLE.replace("b7-01", "b7-0G"),
            &EXAMPLE.replace("b7-01", "b70-1"),
        ];
        for text in wrong {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let known = parse(EXAMPLE);
        let later = EXAMPLE.replacen("00", "cc", 1);
        for more in ["", "-", "-what-will-come", "-\u{fc}"] {
            assert_eq!(parse(&format!("{later}{more}")), known, "{more:?}");
        }
        for more in [".what", "0", " "] {
            assert_eq!(parse(&format!("{later}{more}")), None, "{more:?}");
        }
        assert_eq!(parse(&later[..54]), None);
    }

    #[test]
    fn of_the_flags_only_sampled_counts() {
        for (flags, sampled) in [("00", false), ("01", true), ("02", false), ("03", true), ("fe", false), ("ff", true)] {
            let text = EXAMPLE.replace("b7-01", &format!("b7-{flags}"));
            let context = parse(&text).expect("valid");
            assert_eq!(context.sampled, sampled, "{flags}");
            assert!(context.text().ends_with(if sampled { b"-01" } else { b"-00" }));
        }
    }

    #[test]
    fn a_child_is_another_span_of_the_same_trace() {
        let mut dice = StdRng::seed_from_u64(1);
        let root = Context::root(true, &mut dice);
        let child = root.child(&mut dice);
        assert_eq!((child.trace_id, child.sampled), (root.trace_id, true));
        assert_ne!(child.span_id, root.span_id);
        assert_ne!(Context::root(true, &mut dice).trace_id, root.trace_id);
    }

    #[test]
    fn as_many_are_sampled_as_was_said() {
        let mut dice = StdRng::seed_from_u64(7);
        let mut sampled = |per_million| (0..100_000).filter(|_| Context::sample(per_million, &mut dice)).count();
        assert_eq!((sampled(0), sampled(1_000_000)), (0, 100_000));
        let tenth = sampled(100_000);
        assert!((9_500..10_500).contains(&tenth), "{tenth}");
    }

    /// Dice that fall on zero once.
    struct Zeros(u32);

    impl rand::TryRng for Zeros {
        type Error = std::convert::Infallible;

        fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
            Ok(0)
        }

        fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
            Ok(0)
        }

        fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
            bytes.fill(u8::from(self.0 > 0));
            self.0 += 1;
            Ok(())
        }
    }

    #[test]
    fn a_number_is_never_zero() {
        assert_eq!(id::<8>(&mut Zeros(0)), [1; 8]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace_id in uniform::<_, 16>(any::<u8>()), span_id in uniform::<_, 8>(any::<u8>()), sampled: bool) {
            let context = Context { trace_id, span_id, sampled };
            let valid = trace_id != [0; 16] && span_id != [0; 8];
            prop_assert_eq!(Context::parse(&context.text()), valid.then_some(context));
        }

        #[test]
        fn whatever_comes_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(context) = Context::parse(&bytes) {
                prop_assert_eq!(&context.text()[2..52], &bytes[2..52]);
            }
        }

        #[test]
        fn one_wrong_byte_is_seen(at in 0..55usize, byte: u8) {
            let mut text = EXAMPLE.as_bytes().to_vec();
            text[at] = byte;
            let allowed = match at {
                2 | 35 | 52 => byte == b'-',
                _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
            };
            // A later version, or other flags, are fine.
            prop_assert_eq!(Context::parse(&text).is_some(), allowed);
        }
    }
}
