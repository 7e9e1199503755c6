//! `cargo xtask clean`.

use std::{fs, io};

use anyhow::{Context, Result};

use crate::place::Place;

/// Removes the target folder, with what was set up in it. Packages of the system stay.
pub(crate) fn run(place: &Place) -> Result<()> {
    match fs::remove_dir_all(&place.target) {
        Ok(()) => println!("removed {}", place.target.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => println!("{} is not there", place.target.display()),
        Err(error) => return Err(error).with_context(|| format!("{} cannot be removed", place.target.display())),
    }
    Ok(())
}
