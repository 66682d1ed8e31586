//! DHCP and DNS of one network, unprivileged
