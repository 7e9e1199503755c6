//! MOA's error codes that the mesh itself answers with.

/// The service failed in a way that has no code here.
pub(crate) const FAILED: u16 = 300;
/// The call is not what a MOA server can read, or too large for it.
pub(crate) const SERIALIZATION: u16 = 302;
/// No instance could be reached, or the connection broke.
pub(crate) const REMOTING: u16 = 303;
/// No answer in time.
pub(crate) const TIMEOUT: u16 = 304;
/// The call names no service.
pub(crate) const NO_URI: u16 = 401;
/// The service is not known.
pub(crate) const SERVICE_NOT_FOUND: u16 = 501;
/// A bound was reached.
pub(crate) const POOL_FULL: u16 = 504;
/// The caller may not make the call.
pub(crate) const NOT_ALLOWED: u16 = 506;
