//! Links that are pinned, beyond what the library does with them: it has no call to detach one. Without it a link goes some
//! milliseconds after its last pin and descriptor, and programs run until then.
#![expect(unsafe_code, reason = "the kernel is called by number")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::{
    errno::Errno,
    libc::{self, c_long},
};

/// `BPF_OBJ_GET`.
const GET: c_long = 7;
/// `BPF_LINK_DETACH`.
const DETACH: c_long = 34;

/// A link that was pinned.
pub(super) struct Link(OwnedFd);

impl Link {
    /// The one at this path.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        #[repr(C)]
        struct Get {
            path: u64,
            fd: u32,
            flags: u32,
        }
        let path = CString::new(path.as_os_str().as_bytes())?;
        let get = Get { path: path.as_ptr() as u64, fd: 0, flags: 0 };
        // SAFETY: what the kernel reads is of the size that it is told, and the path outlives the call.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_bpf, GET, &raw const get, size_of::<Get>()) })?;
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made it for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Its program does not run any more when this returns, but for where it runs just now.
    pub(super) fn detach(self) -> io::Result<()> {
        let fd = self.0.as_raw_fd();
        // SAFETY: what the kernel reads is of the size that it is told.
        Errno::result(unsafe { libc::syscall(libc::SYS_bpf, DETACH, &raw const fd, size_of_val(&fd)) })?;
        Ok(())
    }
}
