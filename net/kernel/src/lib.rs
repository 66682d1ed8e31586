//! Netlink actuators: links, addresses, routes, nftables
