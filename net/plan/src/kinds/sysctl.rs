//! A kernel variable.

use super::{ItemKey, Keyed, Kind};
use holdfast_engine::Transition;
use std::fmt;

/// A kernel variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// Below `/proc/sys`, with slashes.
    pub path: String,
    /// Text to write.
    pub value: String,
    /// The interface it belongs to, if it comes and goes with one.
    pub link: Option<String>,
}

impl Kind for Sysctl {
    fn key(&self) -> ItemKey {
        ItemKey::Sysctl(self.path.clone())
    }

    fn needs(&self) -> Vec<ItemKey> {
        self.link.iter().map(|l| ItemKey::Link(l.clone())).collect()
    }

    fn transition(&self, _: &Self) -> Transition {
        Transition::Modify
    }
}

impl Keyed for Sysctl {
    type Key = String;

    fn describe(path: &String, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel variable {path}")
    }
}
