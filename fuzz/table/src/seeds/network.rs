//! Seeds of what network services get from guests and servers.

use super::Seeds;
use holdfast_netsvc::dhcp::{Message, MessageType, packet};
use holdfast_netsvc::dns::message::encode_name;
use std::net::Ipv4Addr;

/// A DHCP discover and an offer, bare and in IP.
#[must_use]
pub fn dhcp() -> Seeds {
    let request = Message::request(MessageType::Discover, 0x0102_0304, [2, 0, 0, 0, 0, 1]);
    let mut offer = request.answer(MessageType::Offer);
    offer.yiaddr = Ipv4Addr::new(10, 0, 0, 2);
    offer.set_addresses(1, &[Ipv4Addr::new(255, 255, 255, 0)]);
    offer.set_addresses(3, &[Ipv4Addr::new(10, 0, 0, 1)]);
    offer.set_addresses(6, &[Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 3)]);
    offer.set_addresses(54, &[Ipv4Addr::new(10, 0, 0, 1)]);
    offer.set(51, 3600u32.to_be_bytes());
    offer.set(15, *b"example.test");
    offer.set(121, [24, 10, 1, 2, 10, 0, 0, 1, 0, 10, 0, 0, 254]);
    let udp = packet::build_udp((Ipv4Addr::new(10, 0, 0, 1), 67), (Ipv4Addr::BROADCAST, 68), &offer.encode());
    vec![request.encode(), offer.encode(), udp]
}

/// An offer and an acknowledgement as the guest's client gets them, behind the byte that chooses its state.
#[must_use]
pub fn guest_dhcp() -> Seeds {
    dhcp().iter().flat_map(|m| [[&[0], m.as_slice()].concat(), [&[1], m.as_slice()].concat()]).collect()
}

/// A query, with and without EDNS.
#[must_use]
pub fn dns() -> Seeds {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend(encode_name("web.example.test"));
    query.extend([0, 1, 0, 1]);
    let mut edns = query.clone();
    edns[11] = 1;
    edns.extend([0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0]);
    vec![query, edns]
}

/// What `netsvc` and the agent say to each other.
#[must_use]
pub fn netsvc_control() -> Seeds {
    let requests = [holdfast_model::contract::network::Request::Subscribe];
    requests.iter().filter_map(|r| serde_json::to_vec(r).ok()).collect()
}
