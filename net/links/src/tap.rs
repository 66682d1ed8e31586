//! A tap interface of the host.

use crate::{Cable, CableError, End};
use holdfast_model::net::{Mac, mac_text};
use holdfast_netkernel::{NetlinkError, tap};

/// A tap that the reconciler made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapCable {
    name: String,
    mac: Mac,
}

impl TapCable {
    /// The tap of that name, for a card of that MAC.
    #[must_use]
    pub fn new(name: impl Into<String>, mac: Mac) -> Self {
        Self { name: name.into(), mac }
    }
}

impl Cable for TapCable {
    fn name(&self) -> &str {
        &self.name
    }

    fn mac(&self) -> Mac {
        self.mac
    }

    fn attach(&self) -> Result<End, CableError> {
        let attach = || -> Result<End, NetlinkError> {
            Ok(End::Frames {
                descriptor: tap::attach(&self.name)?,
                header_bytes: tap::HEADER_BYTES.cast_unsigned(),
                mtu: tap::mtu(&self.name)?,
            })
        };
        attach().map_err(|e| CableError { cable: self.name.clone(), mac: mac_text(self.mac), reason: e.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_netkernel::{Rtnl, sys};

    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    #[tokio::test]
    async fn a_tap_gives_its_end_once_at_a_time_and_again_after_the_vm_is_gone() {
        if let Err(e) = sys::unshare_network() {
            println!("not run: a network namespace needs root ({e})");
            return;
        }
        let cable = TapCable::new("tap-x", MAC);
        let absent = cable.attach().expect_err("absent").to_string();
        assert!(absent.starts_with("cable tap-x for 02:00:00:00:00:01: interface tap-x does not exist"), "{absent}");
        tap::create(&mut Rtnl::new().expect("netlink"), "tap-x", 2001).await.expect("tap");
        for _ in 0..2 {
            let End::Frames { descriptor, header_bytes, mtu } = cable.attach().expect("end");
            assert_eq!((header_bytes, mtu), (12, 1500));
            assert!(cable.attach().is_err());
            drop(descriptor);
        }
    }
}
