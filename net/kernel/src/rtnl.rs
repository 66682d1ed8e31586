//! The rtnetlink connection: one task of the runtime owns the socket, requests wait for their answers with a deadline.

use crate::error::NetlinkError;
use crate::netlink::kernel_text;
use futures_util::{Stream, TryStreamExt};
use rtnetlink::Handle;
use rtnetlink::sys::AsyncSocket;
use std::cell::RefCell;
use std::io;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long an answer may take; the kernel gives it at once or never.
const ANSWER: Duration = Duration::from_secs(5);

/// Links, addresses, routes and rules of the network namespace of the thread that made it.
///
/// Its methods are in [`crate::link`], [`crate::address`] and [`crate::route`].
#[derive(Debug)]
pub struct Rtnl(RefCell<Connection>);

#[derive(Debug)]
struct Connection {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Rtnl {
    /// Connects to the kernel. The connection runs as a task of the runtime of the caller and ends with this value.
    ///
    /// # Errors
    /// Outside of a runtime, or when there is no socket.
    pub fn new() -> Result<Self, NetlinkError> {
        Connection::open().map(|c| Self(RefCell::new(c)))
    }

    /// The way to ask. A connection that has failed is replaced.
    pub(crate) fn handle(&self) -> Result<Handle, NetlinkError> {
        let mut connection = self.0.borrow_mut();
        if connection.task.is_finished() {
            *connection = Connection::open()?;
        }
        Ok(connection.handle.clone())
    }
}

impl Connection {
    fn open() -> Result<Self, NetlinkError> {
        let open = || -> io::Result<Self> {
            let runtime = tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
            let (mut connection, handle, _multicast) = rtnetlink::new_connection()?;
            let socket = connection.socket_mut().socket_mut();
            // Kernel texts for errors, without the request echoed back.
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            Ok(Self { handle, task: runtime.spawn(connection) })
        };
        open().map_err(|source| NetlinkError::Socket { what: "open".into(), source })
    }
}

/// Waits until the kernel has done it; `what` names the request in errors.
pub(crate) async fn done(
    what: &str,
    request: impl Future<Output = Result<(), rtnetlink::Error>>,
) -> Result<(), NetlinkError> {
    let answer = timeout(ANSWER, request).await.map_err(|_| late(what))?;
    answer.map_err(|e| failed(what, &e))
}

/// Collects the answers of a dump.
pub(crate) async fn list<T>(
    what: &str,
    answers: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, NetlinkError> {
    let answer = timeout(ANSWER, answers.try_collect()).await.map_err(|_| late(what))?;
    answer.map_err(|e| failed(what, &e))
}

fn late(what: &str) -> NetlinkError {
    NetlinkError::Socket { what: what.to_owned(), source: io::ErrorKind::TimedOut.into() }
}

fn failed(what: &str, error: &rtnetlink::Error) -> NetlinkError {
    let what = what.to_owned();
    match error {
        rtnetlink::Error::NetlinkError(refusal) => {
            NetlinkError::Refused { what, errno: refusal.to_io(), message: kernel_text(&refusal.header) }
        }
        rtnetlink::Error::RequestFailed => NetlinkError::Socket {
            what,
            source: io::Error::new(io::ErrorKind::NotConnected, "the connection has ended"),
        },
        _ => NetlinkError::Malformed { what },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_runtime_it_is_an_error() {
        let error = Rtnl::new().expect_err("no runtime").to_string();
        assert!(error.starts_with("open: netlink socket: "), "{error}");
    }

    #[test]
    fn it_works_on_one_thread_beside_local_tasks() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let rtnl = Rtnl::new().expect("rtnetlink");
            let local = tokio::task::spawn_local(async move { rtnl.find_link("lo").await });
            assert!(local.await.expect("task").expect("list").is_some());
        });
    }

    #[tokio::test]
    async fn a_connection_that_ended_is_replaced() {
        let rtnl = Rtnl::new().expect("rtnetlink");
        assert!(rtnl.find_link("lo").await.expect("list").is_some());
        rtnl.0.borrow().task.abort();
        while !rtnl.0.borrow().task.is_finished() {
            tokio::task::yield_now().await;
        }
        assert!(rtnl.find_link("lo").await.expect("list").is_some());
    }

    #[tokio::test]
    async fn a_refusal_names_the_object_and_carries_number_and_kernel_text() {
        let rtnl = Rtnl::new().expect("rtnetlink");
        let lo = rtnl.link("lo").await.expect("lo");
        // Refused by its value with root, for want of privilege without.
        let error = rtnl.set_mtu(&lo, u32::MAX).await.expect_err("no such mtu");
        let text = error.to_string();
        assert!(text.starts_with("set mtu 4294967295 of lo: "), "{text}");
        match error.errno() {
            Some(libc::EPERM) => {}
            number => {
                assert_eq!(number, Some(libc::EINVAL), "{text}");
                assert!(text.ends_with("(mtu less than device minimum)"), "{text}");
            }
        }
    }
}
