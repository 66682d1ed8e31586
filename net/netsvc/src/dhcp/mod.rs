//! DHCPv4: the [`message`], its [`packet`] on a raw socket, the [`server`] and the [`client`].

pub mod client;
pub mod message;
pub mod packet;
pub mod server;

pub use message::{Message, MessageType};

/// Fuzz entry: any bytes, as a server and as a client receive them.
#[doc(hidden)]
pub fn fuzz_dhcp(data: &[u8]) {
    if let Ok(m) = Message::parse(data) {
        let again = Message::parse(&m.encode());
        debug_assert!(again.is_ok());
    }
    let _ = packet::parse_udp(data, 68, true);
}
