//! The checks of `agent_common::frame` against a slow, plain reference. The property tests and the fuzz targets share
//! them: each takes any bytes, and panics if what is found differs from what must be.

pub(crate) mod frame;
pub(crate) mod reader;
pub(crate) mod reference;
