//! EVE device API v2: the messages, the signed envelope around them, and what they mean in the device model.
//!
//! Principles:
//! 1. Wire types stop here: what comes in leaves as [`holdfast_model::desired::Desired`], what is observed enters as
//!    [`holdfast_model::observed::Observed`].
//! 2. No I/O, no clock, no key material: keys sign and agree through the traits of [`keys`], because they live in a TPM.
//! 3. A fault in a config belongs to its object and is named; it never refuses the rest.
//! 4. Bytes from a stranger are bounded and never panic; every parser of such bytes has an entry in [`fuzz`].
//! 5. The signed bytes are the payload itself; nothing is read from a payload before its envelope was verified, except
//!    the certificate list, which carries its own signer and is verified against the roots of the site.
//!
//! Reading order: [`proto`] (generated), [`keys`], [`hash`], [`envelope`], [`certs`], [`cipher`], [`config`] (down),
//! [`info`], [`metrics`] and [`newlog`] (up), [`fuzz`].
//!
//! With `default-features = false` only [`proto`] is there.

#![forbid(unsafe_code)]

pub mod proto;

#[cfg(feature = "device")]
pub mod certs;
#[cfg(feature = "device")]
pub mod cipher;
#[cfg(feature = "device")]
pub mod config;
#[cfg(feature = "device")]
pub mod envelope;
#[cfg(feature = "device")]
#[doc(hidden)]
pub mod fuzz;
#[cfg(feature = "device")]
pub mod hash;
#[cfg(feature = "device")]
pub mod info;
#[cfg(feature = "device")]
pub mod keys;
#[cfg(feature = "device")]
pub mod metrics;
#[cfg(feature = "device")]
pub mod newlog;
