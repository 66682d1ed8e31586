//! The socket that clients connect to, and the connections.

use holdfast_supervise::wire::{self, WireError};
use holdfast_supervise::{Event, RefusalKind, Refused, Reply, Request};
use holdfast_unit::packet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Most connections at a time; `node` needs two.
pub const MAX_CLIENTS: usize = 16;

/// The listener and its connections.
#[derive(Debug)]
pub struct Server {
    listener: OwnedFd,
    clients: Vec<Connection>,
    next_id: u64,
}

#[derive(Debug)]
struct Connection {
    id: u64,
    socket: OwnedFd,
    subscribed: bool,
}

impl Server {
    /// Listens at `path`, mode 0600.
    pub fn bind(path: &Path) -> io::Result<Server> {
        let listener = packet::listen(path, MAX_CLIENTS as u8)?;
        // Nobody can be waiting yet: the first connection comes from `node`, which is started later.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(Server { listener, clients: Vec::new(), next_id: 0 })
    }

    /// To poll for reading; then [`Server::accept`].
    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Connections to poll for reading; then [`Server::receive`].
    pub fn connections(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>)> {
        self.clients.iter().map(|c| (c.id, c.socket.as_fd()))
    }

    /// Takes new connections; over the bound they are closed at once.
    pub fn accept(&mut self) {
        while let Ok(Some(socket)) = packet::accept(self.listener.as_fd()) {
            if self.clients.len() < MAX_CLIENTS {
                self.clients.push(Connection { id: self.next_id, socket, subscribed: false });
                self.next_id += 1;
            }
        }
    }

    /// Reads one request of connection `id`; `None` when there is none. Broken packets are answered here.
    pub fn receive(&mut self, id: u64) -> Option<(Request, Vec<OwnedFd>)> {
        let client = self.clients.iter().find(|c| c.id == id)?;
        match wire::receive_request(client.socket.as_fd()) {
            // A subscriber that speaks has lost the thread; closing tells it so.
            Ok(_) if client.subscribed => self.close(id),
            Ok(request) => return Some(request),
            Err(WireError::WouldBlock) => {}
            Err(WireError::Closed | WireError::Socket(_)) => self.close(id),
            Err(error) => self.reply(id, &Reply::Refused(Refused::new(RefusalKind::Invalid, error.to_string()))),
        }
        None
    }

    /// Answers; a client that does not take its answer is closed.
    pub fn reply(&mut self, id: u64, reply: &Reply) {
        let Some(client) = self.clients.iter().find(|c| c.id == id) else {
            return;
        };
        if wire::send_reply(client.socket.as_fd(), reply).is_err() {
            self.close(id);
        }
    }

    /// From now on this connection gets events.
    pub fn subscribe(&mut self, id: u64) {
        if let Some(client) = self.clients.iter_mut().find(|c| c.id == id) {
            client.subscribed = true;
        }
    }

    /// Sends to all subscribers; those that are too slow are closed.
    pub fn publish(&mut self, event: &Event) {
        self.clients.retain(|client| !client.subscribed || wire::send_event(client.socket.as_fd(), event).is_ok());
    }

    fn close(&mut self, id: u64) {
        self.clients.retain(|c| c.id != id);
    }
}
