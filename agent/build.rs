//! Embeds the object of the kernel programs in the binary, if there is one: `cargo xtask build` makes it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Names an object to embed instead of the one that `cargo xtask build` makes.
const OBJECT: &str = "MOA_KERNEL_OBJECT";

fn main() {
    println!("cargo:rustc-check-cfg=cfg(moa_kernel_object)");
    println!("cargo:rerun-if-env-changed={OBJECT}");
    let object = match env::var_os(OBJECT) {
        Some(path) => named(PathBuf::from(path)),
        None => built(),
    };
    if let Some(object) = object {
        println!("cargo:rustc-cfg=moa_kernel_object");
        println!("cargo:rustc-env=MOA_KERNEL_OBJECT_PATH={}", object.display());
    }
}

fn named(object: PathBuf) -> Option<PathBuf> {
    println!("cargo:rerun-if-changed={}", object.display());
    let object = fs::canonicalize(&object)
        .unwrap_or_else(|error| panic!("{OBJECT} names {}, which cannot be read: {error}", object.display()));
    Some(object)
}

fn built() -> Option<PathBuf> {
    let object = target_folder()?.join("kernel/moa-kernel.o");
    println!("cargo:rerun-if-changed={}", object.display());
    let len = fs::metadata(&object).map_or(0, |meta| meta.len());
    if len == 0 {
        place_holder(&object);
    }
    (len > 0).then_some(object)
}

/// Cargo runs this script again at every build if a file that it watches is missing. An empty one with an old date keeps
/// it quiet until the real one is there; if it cannot be made, builds are only slower.
fn place_holder(object: &Path) {
    let _ = object.parent().map(fs::create_dir_all);
    let _ = fs::File::create(object).and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH));
}

/// The target folder is above the output folder of this script, at a depth that differs; cargo marks it.
fn target_folder() -> Option<PathBuf> {
    let out = PathBuf::from(env::var_os("OUT_DIR")?);
    out.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file()).map(Path::to_path_buf)
}
