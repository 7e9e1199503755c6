//! What the kernel programs and user space agree on: map keys, map values and constants.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]
