//! The object of the kernel programs, as it was embedded when the binary was built.

use agent_common::{SCHEMA, SCHEMA_PREFIX};

use super::AttachError;

/// The object, if there is one and it fits this agent.
pub(super) fn embedded() -> Result<&'static [u8], AttachError> {
    let object = OBJECT.ok_or(AttachError::NotBuilt)?;
    match schema(object) {
        Some(SCHEMA) => Ok(object),
        found => Err(AttachError::Schema { found }),
    }
}

#[cfg(moa_kernel_object)]
const OBJECT: Option<&[u8]> = Some(aya::include_bytes_aligned!(env!("MOA_KERNEL_OBJECT_PATH")));
#[cfg(not(moa_kernel_object))]
const OBJECT: Option<&[u8]> = None;

/// The schema that an object says it has.
fn schema(object: &[u8]) -> Option<u32> {
    let at = object.windows(SCHEMA_PREFIX.len()).position(|window| window == SCHEMA_PREFIX)?;
    let version = object.get(at + SCHEMA_PREFIX.len()..)?.first_chunk()?;
    Some(u32::from_le_bytes(*version))
}

#[cfg(test)]
mod tests {
    use agent_common::SCHEMA_MARK;

    use super::*;

    #[test]
    fn the_schema_is_found_wherever_it_is() {
        assert_eq!(schema(&SCHEMA_MARK), Some(SCHEMA));
        let object = [&[0x7f, b'E', b'L', b'F'][..], b"moa-schema:", &SCHEMA_MARK[..12], &[7, 1, 0, 0], &[9]].concat();
        assert_eq!(schema(&object), Some(263));
    }

    #[test]
    fn an_object_without_a_whole_schema_has_none() {
        assert_eq!(schema(b""), None);
        assert_eq!(schema(b"\x7fELF and nothing else"), None);
        assert_eq!(schema(&SCHEMA_MARK[..15]), None);
    }

    #[test]
    fn the_embedded_object_fits() {
        let object = embedded().expect("run cargo xtask build, so that the tests have the kernel programs");
        assert!(object.starts_with(b"\x7fELF"));
    }
}
