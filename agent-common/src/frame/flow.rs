/// The longest frame.
const FRAME: u32 = 64 * 1024;
const _: () = assert!(FRAME as usize == super::FRAME_MAX);

/// Bytes that may still be sent before the receiver gives back room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendWindow {
    left: u32,
}

/// Bytes that may still come, and when their room is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveWindow {
    size: u32,
    /// Bytes that came and whose room was not given back.
    taken: u32,
    /// Those of them that were used up since.
    used: u32,
}

/// More came than a window had room for, or more room was given than a window may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overrun;

impl SendWindow {
    /// A window of this size, with all its room.
    #[must_use]
    pub const fn new(size: u32) -> Self {
        Self { left: size }
    }

    /// The room that is left.
    #[must_use]
    pub const fn left(&self) -> u32 {
        self.left
    }

    /// Whether a frame of this length may be sent.
    #[must_use]
    pub const fn has(&self, len: usize) -> bool {
        len <= self.left as usize
    }

    /// Takes the room of a frame, if there is enough for all of it.
    pub fn take(&mut self, len: usize) -> bool {
        match u32::try_from(len).ok().and_then(|len| self.left.checked_sub(len)) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }

    /// The receiver gave back room.
    ///
    /// # Errors
    /// When that makes more than a window may have.
    pub fn credit(&mut self, bytes: u32) -> Result<(), Overrun> {
        self.left = self.left.checked_add(bytes).filter(|left| *left <= super::WINDOW_MAX).ok_or(Overrun)?;
        Ok(())
    }
}

impl ReceiveWindow {
    /// A window of this size, with all its room.
    #[must_use]
    pub const fn new(size: u32) -> Self {
        Self { size, taken: 0, used: 0 }
    }

    /// A frame of this length came.
    ///
    /// # Errors
    /// When there was no room for it.
    pub fn receive(&mut self, len: usize) -> Result<(), Overrun> {
        let len = u32::try_from(len).map_err(|_| Overrun)?;
        self.taken = self.taken.checked_add(len).filter(|taken| *taken <= self.size).ok_or(Overrun)?;
        Ok(())
    }

    /// So many bytes of what came are used up. Returns what to give back, once that is a quarter of the window, or once
    /// nothing else is held and a frame of any size would not fit: the sender would wait for ever for what is kept back.
    pub fn used(&mut self, len: usize) -> Option<u32> {
        self.used = self.used.saturating_add(u32::try_from(len).unwrap_or(u32::MAX)).min(self.taken);
        let shut = self.held() == 0 && self.size - self.taken < FRAME;
        if self.used == 0 || self.used < self.size / 4 && !shut {
            return None;
        }
        self.taken -= self.used;
        Some(std::mem::take(&mut self.used))
    }

    /// Bytes that came and are not used up.
    #[must_use]
    pub const fn held(&self) -> u32 {
        self.taken - self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{WINDOW_MAX, WINDOW_MIN};

    #[test]
    fn room_is_given_back_by_the_quarter() {
        let mut window = ReceiveWindow::new(1_000_000);
        assert_eq!(window.receive(600_000), Ok(()));
        assert_eq!(window.used(249_999), None);
        assert_eq!(window.used(1), Some(250_000));
        assert_eq!(window.receive(650_000), Ok(()));
        assert_eq!(window.receive(1), Err(Overrun));
        assert_eq!(window.held(), 1_000_000);
    }

    #[test]
    fn a_large_frame_fits_once_all_is_used_up() {
        for size in [WINDOW_MIN, WINDOW_MIN + 1, 80_000, 100_000, 4 * WINDOW_MIN] {
            let (mut sender, mut receiver) = (SendWindow::new(size), ReceiveWindow::new(size));
            for len in [100, 10_000, 65_536, 1, 65_536, 16_000, 65_536] {
                assert!(sender.take(len), "{len} bytes into a window of {size}");
                receiver.receive(len).unwrap();
                if let Some(credit) = receiver.used(len) {
                    sender.credit(credit).unwrap();
                }
            }
        }
    }

    #[test]
    fn both_ends_agree() {
        let (mut sender, mut receiver) = (SendWindow::new(WINDOW_MIN), ReceiveWindow::new(WINDOW_MIN));
        for len in (0..10_000usize).map(|n| n * 7919 % 65_536) {
            assert!(sender.take(len), "everything that came is used up, so there is room for any frame");
            assert_eq!(receiver.receive(len), Ok(()));
            receiver.used(len).into_iter().for_each(|credit| assert_eq!(sender.credit(credit), Ok(())));
        }
    }

    #[test]
    fn a_window_does_not_grow_without_end() {
        let mut window = SendWindow::new(WINDOW_MAX);
        assert_eq!(window.credit(1), Err(Overrun));
        assert!(window.take(1) && !window.take(WINDOW_MAX as usize));
        assert_eq!(window.credit(1), Ok(()));
    }
}
