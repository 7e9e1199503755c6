use core::ops::{BitOr, BitOrAssign};

/// What is said of a frame beside its kind. Bits that are not known are carried along.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Flags(pub u16);

impl Flags {
    /// The last frame of a message: no DATA follows. On GOAWAY: what is above its stream was not and will not be executed.
    pub const END_STREAM: Self = Self(1);
    /// A REQUEST that no RESPONSE answers.
    pub const ONE_WAY: Self = Self(1 << 1);
    /// A REQUEST that may be executed more than once.
    pub const IDEMPOTENT: Self = Self(1 << 2);
    /// The body is compressed, as the metadata's content type says.
    pub const COMPRESSED: Self = Self(1 << 3);
    /// A copy of a call, whose answer nobody reads.
    pub const SHADOW: Self = Self(1 << 4);
    /// Not to be routed by the kernel.
    pub const SLOW_PATH: Self = Self(1 << 5);
    /// An agent vouches for the source entries of the metadata. Applications cannot set it.
    pub const VERIFIED: Self = Self(1 << 6);
    /// On its way from callee to caller. On every RESPONSE, and on DATA, CANCEL and CREDIT of that direction.
    pub const TO_CALLER: Self = Self(1 << 7);
    /// On a RESPONSE or CANCEL of a call that certainly was not executed: sending it again elsewhere is always safe.
    pub const NOT_EXECUTED: Self = Self(1 << 8);

    /// No flag.
    pub const NONE: Self = Self(0);

    /// Whether all of `other` are set.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The same with `other` set.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The same without `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

impl BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Self) {
        *self = self.with(other);
    }
}
