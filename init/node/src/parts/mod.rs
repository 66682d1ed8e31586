//! The parts of the agent, one folder for each domain.
//!
//! A new part is one folder and one line in the list below. The order is that of a pass of the kernel.

use crate::part::Part;
use crate::setup::Setup;
use anyhow::{Context, Result};
use std::fs;

/// Makes the modules, and [`all`] that constructs the parts of an agent: those `always`, and those that need the vault `open`.
macro_rules! parts {
    ($($name:ident: $when:ident,)*) => {
        $(pub mod $name;)*

        /// The parts of this agent; each gets what was kept of it.
        ///
        /// # Errors
        /// A part's, with its name.
        pub fn all(setup: &Setup) -> Result<Vec<Box<dyn Part>>> {
            let mut list = Vec::new();
            $(if when::$when(setup) {
                let name = stringify!($name);
                let file = setup.paths.data("status").join(format!("{name}.json"));
                let kept = if setup.vault_open { fs::read(file).ok() } else { None };
                list.push($name::new(setup, kept.as_deref()).with_context(|| format!("part {name}"))?);
            })*
            Ok(list)
        }
    };
}

mod when {
    use super::Setup;

    pub(super) fn always(_: &Setup) -> bool {
        true
    }

    pub(super) fn open(setup: &Setup) -> bool {
        setup.vault_open
    }
}

parts! {
    vault: always,
    device: always,
    controller: always,
    network: always,
    content: open,
    volume: open,
    app: open,
    base_os: always,
    logs: open,
}

#[cfg(test)]
mod tests;
