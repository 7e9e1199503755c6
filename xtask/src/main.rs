//! MOA Mesh's tasks: `cargo xtask <verb>`.
#![forbid(unsafe_code)]

mod load;

fn main() {}
