//! The channel under tokio: the same messages, waited for without holding up others.
#![allow(unsafe_code, reason = "the runtime wants a promise about the descriptor")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use crate::channel::{Channel, ChannelError, Message};

/// A [`Channel`] whose waits are futures. Needs a tokio runtime with I/O; deadlines need its timer.
#[derive(Debug)]
pub struct AsyncChannel {
    inner: AsyncFd<Registered>,
}

/// `AsyncFd` wants a number.
#[derive(Debug)]
struct Registered(Channel);

impl AsRawFd for Registered {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsyncChannel {
    /// Connects to the listener at `path`.
    ///
    /// # Errors
    /// [`ChannelError::Socket`].
    pub fn connect(path: &Path) -> Result<Self, ChannelError> {
        Self::new(Channel::connect(path)?)
    }

    /// Over a channel.
    ///
    /// # Errors
    /// [`ChannelError::Socket`] when it cannot be registered with the runtime.
    pub fn new(channel: Channel) -> Result<Self, ChannelError> {
        // SAFETY: the channel owns its descriptor and gives out no other one; `AsyncFd` owns the channel.
        let inner = unsafe { AsyncFd::register(Registered(channel)) }.map_err(std::io::Error::from)?;
        Ok(Self { inner })
    }

    /// Sends a message with its descriptors, waiting for room. Dropped half way, the rest goes out before the next message.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub async fn send(&mut self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        self.send_text(&serde_json::to_vec(message)?, fds).await
    }

    /// [`AsyncChannel::send`] of JSON that is text already.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub async fn send_text(&mut self, text: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let mut done = self.inner.get_mut().0.send_text(text, fds)?;
        while !done {
            let mut ready = self.inner.writable_mut().await?;
            done = ready.get_inner_mut().0.flush()?;
            if !done {
                ready.clear_ready();
            }
        }
        Ok(())
    }

    /// The next message, waiting for it. Dropped half way, nothing is lost.
    ///
    /// # Errors
    /// As [`Channel::try_receive`].
    pub async fn receive(&mut self) -> Result<Message, ChannelError> {
        loop {
            let mut ready = self.inner.readable_mut().await?;
            match ready.get_inner_mut().0.try_receive()? {
                Some(message) => return Ok(message),
                None => ready.clear_ready(),
            }
        }
    }

    /// One question and its answer within `deadline`.
    ///
    /// # Errors
    /// As [`AsyncChannel::send`] and [`AsyncChannel::receive`], [`ChannelError::Deadline`], or [`ChannelError::Json`] for
    /// another answer than `T`.
    pub async fn ask<T: DeserializeOwned>(
        &mut self,
        message: &impl Serialize,
        deadline: Duration,
    ) -> Result<T, ChannelError> {
        let exchange = async {
            self.send(message, &[]).await?;
            self.receive().await?.parse()
        };
        timeout(deadline, exchange).await.unwrap_or(Err(ChannelError::Deadline(deadline)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MAX_MESSAGE;

    fn pair() -> (AsyncChannel, AsyncChannel) {
        let (a, b) = crate::packet::pair().unwrap();
        let channel = |fd| AsyncChannel::new(Channel::new(fd).unwrap()).unwrap();
        (channel(a), channel(b))
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_message_as_long_as_allowed_passes_on_one_thread() {
        let (mut a, mut b) = pair();
        let text = "x".repeat(MAX_MESSAGE - 2);
        let (sent, received) = tokio::join!(a.send(&text, &[]), b.receive());
        sent.unwrap();
        assert_eq!(received.unwrap().parse::<String>().unwrap(), text);
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn a_silent_peer_costs_the_deadline_and_no_more() {
        let (mut a, _b) = pair();
        let started = tokio::time::Instant::now();
        let answer = a.ask::<u32>(&1, Duration::from_secs(3)).await;
        assert!(matches!(answer, Err(ChannelError::Deadline(_))));
        assert_eq!(started.elapsed().as_secs(), 3);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_peer_that_closes_is_an_error_of_its_own() {
        let (mut a, b) = pair();
        drop(b);
        assert!(matches!(a.receive().await, Err(ChannelError::Closed)));
    }
}
