//! What every supervised program links, and those who talk to one.
//!
//! Principles:
//! 1. A program opens nothing by path: it adopts descriptors ([`fds`]) and reads one document of a known version ([`document`]).
//! 2. It is asked over one kind of channel ([`channel`]): JSON messages over `SOCK_SEQPACKET`, bounded, every wait with a
//!    deadline.
//! 3. As it ends it says why ([`last_words`]): a class for programs, a sentence for people.
//! 4. What must survive a power cut is replaced, never changed in place ([`durable`]).
//! 5. Everything is synchronous and small; the async half of the channel is behind the feature `tokio`.
//!
//! Reading order: [`fds`], [`document`], [`packet`] (one packet and its descriptors), [`channel`] (messages),
//! `asynchronous` (the same under tokio), [`last_words`], [`durable`].
#![deny(unsafe_code)]

#[cfg(feature = "tokio")]
pub mod asynchronous;
pub mod channel;
pub mod document;
pub mod durable;
#[allow(unsafe_code, reason = "a number becomes an owned descriptor")]
pub mod fds;
pub mod last_words;
#[allow(unsafe_code, reason = "control messages are laid out by hand")]
pub mod packet;

#[cfg(feature = "tokio")]
pub use asynchronous::AsyncChannel;
pub use channel::{Channel, ChannelError, MAX_MESSAGE};
pub use last_words::LastWords;
pub use packet::{MAX_FDS, MAX_PACKET};
