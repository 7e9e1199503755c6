//! Where the members of the kernel's structures are, from the type information that a kernel carries (BTF). The format is in
//! the kernel's `Documentation/bpf/btf.rst`.

use std::{collections::HashSet, fs, io, iter, path::Path};

use agent_common::Offsets;

const MAGIC: u16 = 0xeb9f;
/// The name, the info and the size or type, with which every type begins.
const TYPE_HEAD: usize = 12;
const MEMBER: usize = 12;
const ENUMERATOR: usize = 8;

// The kinds of types that matter here, from the kernel's `linux/btf.h`.
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const TYPE_TAG: u32 = 18;

/// Typedefs and qualifiers before the type itself. The kernel has a handful; damaged ones can go round in circles.
const QUALIFIERS_MAX: usize = 32;

/// Why the offsets are not known.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file cannot be read.
    #[error("{path} cannot be read ({source}): mount /sys, and use a kernel with CONFIG_DEBUG_INFO_BTF=y", path = path.display())]
    Read {
        /// The file.
        path: Box<Path>,
        /// Why.
        source: io::Error,
    },
    /// The file is of another machine.
    #[error("the type information is in another byte order than this machine's: name the file of the kernel that runs here")]
    ByteOrder,
    /// The file is something else, or of a version that is not known here.
    #[error("the file has no type information of a kernel in the known format (BTF version 1): name /sys/kernel/btf/vmlinux")]
    Format,
    /// The file is cut short or wrong in itself.
    #[error("the type information of the kernel is damaged ({what}): install the kernel anew, with CONFIG_DEBUG_INFO_BTF=y")]
    Damaged {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The kernel is newer than this code, which cannot tell how long such a type is.
    #[error("the type information of the kernel has types of kind {kind}, unknown to this agent: use a newer agent")]
    Kind {
        /// Its number.
        kind: u32,
    },
    /// The kernel's structures are not the ones that this code knows.
    #[error("this kernel has no {what} that a program can read: use another kernel, or a newer agent")]
    Missing {
        /// The member, from its structure on.
        what: String,
    },
}

/// Finds the offsets in the type information at `path`, usually `/sys/kernel/btf/vmlinux`.
///
/// # Errors
/// The file is not there, not whole, or of a kernel with other structures.
pub(super) fn offsets(path: &Path) -> Result<Offsets, BtfError> {
    let bytes = fs::read(path).map_err(|source| BtfError::Read { path: path.into(), source })?;
    find(&bytes)
}

fn find(bytes: &[u8]) -> Result<Offsets, BtfError> {
    let types = Types::parse(bytes)?;
    Ok(Offsets {
        write_seq: types.offset("tcp_sock", &["write_seq"])?,
        ulp_ops: types.offset("tcp_sock", &["inet_conn", "icsk_ulp_ops"])?,
        // What C code calls `sk_flags` is a macro for this.
        flags: types.offset("sock", &["__sk_common", "skc_flags"])?,
        zerocopy: types.enumerator("sock_flags", "SOCK_ZEROCOPY")?,
        socket: types.offset("sock", &["sk_socket"])?,
        file: types.offset("socket", &["file"])?,
        file_flags: types.offset("file", &["f_flags"])?,
        err: types.offset("sock", &["sk_err"])?,
    })
}

const FAR: BtfError = BtfError::Damaged { what: "a member is farther than any structure is long" };

/// All types of a file; the first has number 1.
struct Types<'a> {
    names: &'a [u8],
    all: Vec<Type<'a>>,
}

#[derive(Clone, Copy)]
struct Type<'a> {
    /// Where its name begins.
    name: u32,
    kind: u32,
    /// Whether the offsets of its members have the widths of bit fields beside them.
    with_widths: bool,
    /// The type that it qualifies, for those that do.
    inner: u32,
    /// What follows the head: a structure's members.
    rest: &'a [u8],
}

struct Member {
    name: u32,
    kind: u32,
    bits: u32,
    is_bit_field: bool,
}

impl<'a> Types<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        const SHORT: BtfError = BtfError::Damaged { what: "the header is cut short" };
        let (magic, rest) = bytes.split_first_chunk().ok_or(SHORT)?;
        match u16::from_ne_bytes(*magic) {
            MAGIC if rest.first() == Some(&1) => {}
            magic if magic == MAGIC.swap_bytes() => return Err(BtfError::ByteOrder),
            _ => return Err(BtfError::Format),
        }
        let header = |at| word(bytes, at).ok_or(SHORT);
        let body = bytes.get(header(4)? as usize..).ok_or(SHORT)?;
        let types = section(body, header(8)?, header(12)?).ok_or(BtfError::Damaged { what: "the types are cut short" })?;
        let names = section(body, header(16)?, header(20)?).ok_or(BtfError::Damaged { what: "the names are cut short" })?;
        Ok(Self { names, all: split(types)? })
    }

    /// Bytes from the start of a structure to the member that a path of members leads to.
    fn offset(&self, structure: &str, path: &[&str]) -> Result<u32, BtfError> {
        let missing = || BtfError::Missing { what: format!("{structure}.{}", path.join(".")) };
        let mut of = self.all.iter().find(|ty| ty.kind == STRUCT && self.is_named(ty.name, structure)).copied();
        let (mut bits, mut addressable) = (0_u32, true);
        for name in path {
            let member = self.member(of.ok_or_else(missing)?, name)?.ok_or_else(missing)?;
            bits = bits.checked_add(member.bits).ok_or(FAR)?;
            addressable = bits.is_multiple_of(u8::BITS) && !member.is_bit_field;
            of = self.resolve(member.kind)?.map(|(_, ty)| ty);
        }
        if addressable { Ok(bits / u8::BITS) } else { Err(missing()) }
    }

    /// The value of a name of an enumeration.
    fn enumerator(&self, enumeration: &str, name: &str) -> Result<u32, BtfError> {
        let all = self.all.iter().filter(|ty| ty.kind == ENUM && self.is_named(ty.name, enumeration));
        let mut values = all.flat_map(|ty| ty.rest.chunks_exact(ENUMERATOR));
        let found = values.find(|value| word(value, 0).is_some_and(|found| self.is_named(found, name)));
        found.and_then(|value| word(value, 4)).ok_or_else(|| BtfError::Missing { what: format!("{enumeration}.{name}") })
    }

    /// Finds a member, in nameless structures and unions inside too, as C does.
    fn member(&self, of: Type<'a>, name: &str) -> Result<Option<Member>, BtfError> {
        let mut open = vec![(of, 0_u32)];
        // No valid structure has the same nameless one twice, and a damaged one must not be able to contain itself.
        let mut seen = HashSet::new();
        while let Some((ty, base)) = open.pop() {
            for member in ty.members() {
                let bits = base.checked_add(member.bits).ok_or(FAR)?;
                if self.is_named(member.name, name) {
                    return Ok(Some(Member { bits, ..member }));
                }
                let inner = if self.is_named(member.name, "") { self.resolve(member.kind)? } else { None };
                open.extend(inner.filter(|(number, _)| seen.insert(*number)).map(|(_, inner)| (inner, bits)));
            }
        }
        Ok(None)
    }

    /// The type behind typedefs and qualifiers, and its number. None: void.
    fn resolve(&self, mut number: u32) -> Result<Option<(u32, Type<'a>)>, BtfError> {
        for _ in 0..QUALIFIERS_MAX {
            let Some(index) = number.checked_sub(1) else { return Ok(None) };
            let ty = self.all.get(index as usize).ok_or(BtfError::Damaged { what: "a type refers to one that is not there" })?;
            match ty.kind {
                TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => number = ty.inner,
                _ => return Ok(Some((number, *ty))),
            }
        }
        Err(BtfError::Damaged { what: "a type refers to itself" })
    }

    fn is_named(&self, name: u32, expected: &str) -> bool {
        let rest = self.names.get(name as usize..).and_then(|names| names.strip_prefix(expected.as_bytes()));
        rest.is_some_and(|rest| rest.first() == Some(&0))
    }
}

impl Type<'_> {
    /// Its members; none if it is no structure or union.
    fn members(&self) -> impl Iterator<Item = Member> {
        let members = if matches!(self.kind, STRUCT | UNION) { self.rest } else { &[] };
        members.chunks_exact(MEMBER).filter_map(|member| {
            let (name, kind, offset) = (word(member, 0)?, word(member, 4)?, word(member, 8)?);
            let (bits, width) = if self.with_widths { (offset & 0xff_ffff, offset >> 24) } else { (offset, 0) };
            Some(Member { name, kind, bits, is_bit_field: width != 0 })
        })
    }
}

/// Splits the section of types into types.
fn split(mut section: &[u8]) -> Result<Vec<Type<'_>>, BtfError> {
    iter::from_fn(|| (!section.is_empty()).then(|| take(&mut section))).collect()
}

/// Takes the first type of the section off it.
fn take<'a>(section: &mut &'a [u8]) -> Result<Type<'a>, BtfError> {
    const SHORT: BtfError = BtfError::Damaged { what: "a type is cut short" };
    let (head, rest) = section.split_at_checked(TYPE_HEAD).ok_or(SHORT)?;
    let field = |at| word(head, at).ok_or(SHORT);
    let (name, info, inner) = (field(0)?, field(4)?, field(8)?);
    let kind = info >> 24 & 0x1f;
    let (rest, next) = rest.split_at_checked(rest_length(kind, (info & 0xffff) as usize)?).ok_or(SHORT)?;
    *section = next;
    Ok(Type { name, kind, with_widths: info >> 31 == 1, inner, rest })
}

/// Bytes after the head of a type with so many members, values or parameters.
fn rest_length(kind: u32, count: usize) -> Result<usize, BtfError> {
    match kind {
        // A pointer, a declaration ahead, a function, a floating-point number.
        2 | 7 | 12 | 16 | TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => Ok(0),
        // An integer, a variable, the tag of a declaration.
        1 | 14 | 17 => Ok(4),
        // An array.
        3 => Ok(12),
        // An enumeration, the parameters of a function.
        ENUM | 13 => Ok(ENUMERATOR * count),
        // A section of data, an enumeration of 64-bit values.
        STRUCT | UNION | 15 | 19 => Ok(12 * count),
        _ => Err(BtfError::Kind { kind }),
    }
}

/// The part of the file after its header that the header names.
fn section(body: &[u8], at: u32, length: u32) -> Option<&[u8]> {
    body.get(at as usize..)?.get(..length as usize)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::{prelude::*, sample::Index};

    use super::*;

    static OF_THIS_KERNEL: LazyLock<Vec<u8>> = LazyLock::new(|| fs::read("/sys/kernel/btf/vmlinux").unwrap());
    /// The flag of structures whose members have the widths of bit fields.
    const WIDTHS: u32 = 1 << 31;

    /// Type information as a compiler would write it.
    struct Made {
        types: Vec<u32>,
        names: Vec<u8>,
        last: u32,
    }

    impl Made {
        fn empty() -> Self {
            Self { types: Vec::new(), names: vec![0], last: 0 }
        }

        /// Every kind, and the members that are looked for, the first of them with this offset word.
        fn with(write_seq: u32) -> Self {
            let mut made = Self::empty();
            let skipped = [(1, 0, 1), (2, 0, 0), (3, 0, 3), (6, 2, 4), (7, 0, 0), (12, 0, 0), (13, 3, 6), (14, 0, 1), (15, 2, 6)];
            for (kind, count, words) in skipped.into_iter().chain([(16, 0, 0), (17, 0, 1), (19, 2, 6)]) {
                made.add("skipped", kind << 24 | count, 1, &vec![1; words]);
            }
            let names = [made.name("SOCK_DEAD"), 0, made.name("SOCK_ZEROCOPY"), 18];
            made.add("sock_flags", ENUM << 24 | 2, 4, &names);
            let flags = made.structure("", UNION, 0, &[("skc_flags", 1, 0), ("skc_listener", 2, 0)]);
            let common = made.structure("sock_common", STRUCT, 0, &[("skc_family", 1, 0), ("", flags, 96 * 8)]);
            made.structure("sock", STRUCT, 0, &[("__sk_common", common, 0), ("sk_socket", 2, 600 * 8), ("sk_err", 1, 700 * 8)]);
            made.structure("socket", STRUCT, 0, &[("file", 2, 16 * 8)]);
            made.structure("file", STRUCT, 0, &[("f_flags", 1, 64 * 8)]);
            let mut inner = made.structure("", STRUCT, WIDTHS, &[("a", 1, 3 << 24 | 5), ("icsk_ulp_ops", 2, 1224 * 8)]);
            for kind in [TYPEDEF, CONST, VOLATILE, RESTRICT, TYPE_TAG] {
                inner = made.add("qualified", kind << 24, inner, &[]);
            }
            let union = made.structure("", UNION, WIDTHS, &[("b", 1, 0), ("write_seq", 1, write_seq)]);
            let group = made.structure("", STRUCT, 0, &[("", union, 4 * 8)]);
            made.structure("tcp_sock", STRUCT, 0, &[("inet_conn", inner, 8 * 8), ("", group, 2000 * 8)]);
            made
        }

        fn name(&mut self, name: &str) -> u32 {
            let at = self.names.len();
            self.names.extend_from_slice(name.as_bytes());
            self.names.push(0);
            u32::try_from(at).unwrap()
        }

        fn add(&mut self, name: &str, info: u32, inner: u32, rest: &[u32]) -> u32 {
            let name = self.name(name);
            self.types.extend([name, info, inner].iter().chain(rest));
            self.last += 1;
            self.last
        }

        fn structure(&mut self, name: &str, kind: u32, flag: u32, members: &[(&str, u32, u32)]) -> u32 {
            let rest: Vec<u32> = members.iter().flat_map(|(name, ty, offset)| [self.name(name), *ty, *offset]).collect();
            self.add(name, kind << 24 | flag | u32::try_from(members.len()).unwrap(), 0, &rest)
        }

        fn bytes(&self) -> Vec<u8> {
            let (types, names) = (u32::try_from(self.types.len() * 4).unwrap(), u32::try_from(self.names.len()).unwrap());
            let mut bytes = MAGIC.to_ne_bytes().to_vec();
            bytes.extend([1, 0]);
            let words = [24, 0, types, types, names].into_iter().chain(self.types.iter().copied());
            bytes.extend(words.flat_map(u32::to_ne_bytes));
            bytes.extend(&self.names);
            bytes
        }
    }

    #[test]
    fn finds_the_members_in_this_kernel() {
        let offsets = offsets(Path::new("/sys/kernel/btf/vmlinux")).unwrap();
        assert!(offsets.flags > 0 && offsets.flags < offsets.ulp_ops && offsets.ulp_ops < offsets.write_seq, "{offsets:?}");
        assert_eq!((offsets.flags | offsets.ulp_ops | offsets.write_seq) % 4, 0, "{offsets:?}");
        assert!((1..64).contains(&offsets.zerocopy), "{offsets:?}");
    }

    #[test]
    fn follows_nested_nameless_and_qualified_types() {
        assert_eq!(
            find(&Made::with(16 * 8).bytes()).unwrap(),
            Offsets { write_seq: 2020, ulp_ops: 1232, flags: 96, zerocopy: 18, socket: 600, file: 16, file_flags: 64, err: 700 }
        );
    }

    #[test]
    fn refuses_bit_fields() {
        for offset in [(8 << 24) | (16 * 8), 16 * 8 + 1] {
            let error = find(&Made::with(offset).bytes()).unwrap_err();
            assert!(matches!(&error, BtfError::Missing { what } if what == "tcp_sock.write_seq"), "{error}");
        }
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let mut bytes = Made::with(0).bytes();
        bytes[..2].reverse();
        assert!(matches!(find(&bytes), Err(BtfError::ByteOrder)));
        assert!(matches!(find(b"\x7fELF"), Err(BtfError::Format)));
        let mut made = Made::with(0);
        made.add("new", 20 << 24, 0, &[]);
        assert!(matches!(find(&made.bytes()), Err(BtfError::Kind { kind: 20 })));
        assert!(matches!(find(&Made::empty().bytes()), Err(BtfError::Missing { .. })));
        assert!(matches!(offsets(Path::new("/nowhere")), Err(BtfError::Read { .. })));
    }

    #[test]
    fn ends_on_types_that_contain_themselves() {
        let mut made = Made::empty();
        made.structure("tcp_sock", STRUCT, 0, &[("", 1, 0), ("", 1, 8), ("", 2, 0)]);
        made.structure("", STRUCT, 0, &[("", 1, 8), ("", 2, 16), ("", 2, 24)]);
        assert!(matches!(find(&made.bytes()), Err(BtfError::Missing { .. })));
        let mut made = Made::empty();
        made.structure("tcp_sock", STRUCT, 0, &[("write_seq", 2, 0)]);
        made.add("t", TYPEDEF << 24, 2, &[]);
        assert!(matches!(find(&made.bytes()), Err(BtfError::Damaged { .. })));
    }

    #[test]
    fn survives_every_cut_and_every_flipped_bit() {
        let mut bytes = Made::with(0).bytes();
        assert!((0..bytes.len()).all(|length| find(&bytes[..length]).is_err()));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let _ = find(&bytes);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn survives_damage_to_this_kernel(cut: Index, flips: [Index; 4], bit in 0_u32..8) {
            let mut bytes = OF_THIS_KERNEL.clone();
            prop_assert!(find(&bytes[..cut.index(bytes.len())]).is_err());
            for flip in flips {
                let at = flip.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            let _ = find(&bytes);
        }
    }
}
