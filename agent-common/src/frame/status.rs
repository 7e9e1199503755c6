//! How calls end, and why connections do.

/// The call succeeded.
pub const OK: u32 = 0;
/// The service failed in a way that it has no code for.
pub const FAILED: u32 = 300;
/// A frame or a body is not what its receiver can read, or too large for it.
pub const SERIALIZATION: u32 = 302;
/// No instance could be reached, or the connection broke.
pub const REMOTING: u32 = 303;
/// No answer in time.
pub const TIMEOUT: u32 = 304;
/// The caller has given up.
pub const CANCELLED: u32 = 305;
/// The call names no service.
pub const NO_URI: u32 = 401;
/// The service is not known.
pub const SERVICE_NOT_FOUND: u32 = 501;
/// A bound was reached.
pub const LIMIT: u32 = 504;

/// Why a GOAWAY was sent.
pub mod reason {
    /// The sender ends in good order.
    pub const DRAIN: u32 = 0;
    /// The peer broke a rule of the protocol.
    pub const PROTOCOL: u32 = 1;
    /// The peer sent more than a window had room for.
    pub const FLOW_CONTROL: u32 = 2;
    /// There is no version that both know.
    pub const VERSION: u32 = 3;
    /// There are too many connections, or too much waits for this one.
    pub const LIMIT: u32 = 4;
    /// The peer may not do what it asked for.
    pub const REFUSED: u32 = 5;
}
