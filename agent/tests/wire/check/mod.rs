//! The checks of `agent::wire` against slow, plain references. The property tests and the fuzz targets share them:
//! each takes any bytes, and panics if what is found differs from what must be.

pub(crate) mod envelope;
pub(crate) mod json;
pub(crate) mod reply;
pub(crate) mod resp;
pub(crate) mod resp_reference;
