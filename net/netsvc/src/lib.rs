//! DHCP and DNS of one network, unprivileged.
pub mod config;
