//! The name servers that the host itself uses.

use super::{ItemKey, Keyed, Kind};
use holdfast_engine::Transition;
use std::fmt;
use std::net::IpAddr;

/// The host's resolver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolver {
    /// Name servers, best first.
    pub servers: Vec<IpAddr>,
    /// Search domains.
    pub domains: Vec<String>,
}

impl Resolver {
    /// Text of `resolv.conf`. The C library reads at most three servers.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.domains.is_empty() {
            text.push_str(&format!("search {}\n", self.domains.join(" ")));
        }
        for s in self.servers.iter().take(3) {
            text.push_str(&format!("nameserver {s}\n"));
        }
        text
    }
}

impl Kind for Resolver {
    fn key(&self) -> ItemKey {
        ItemKey::Resolver(())
    }

    fn needs(&self) -> Vec<ItemKey> {
        Vec::new()
    }

    fn transition(&self, _: &Self) -> Transition {
        Transition::Modify
    }
}

impl Keyed for Resolver {
    type Key = ();

    fn describe((): &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("resolver configuration")
    }
}
