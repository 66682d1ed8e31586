//! The measured command line: which slot image this kernel belongs to.
#![forbid(unsafe_code)]

use holdfast_format::verity::{Root, RootError};

/// What the UKI says about its slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cmdline {
    /// Root hash and size of the slot's image.
    pub root: Root,
    /// Version text.
    pub version: String,
    /// Security epoch.
    pub epoch: u32,
}

/// An item that is missing or wrong.
#[derive(Debug, thiserror::Error)]
pub enum CmdlineError {
    /// `slot.root` or `slot.blocks`.
    #[error(transparent)]
    Root(#[from] RootError),
    /// Another one.
    #[error("kernel command line: {item}={found:?}, expected {expected}")]
    Item {
        /// Its name.
        item: &'static str,
        /// Its value.
        found: String,
        /// What would do.
        expected: &'static str,
    },
}

impl Cmdline {
    /// Reads the items out of `/proc/cmdline`.
    pub fn parse(text: &str) -> Result<Cmdline, CmdlineError> {
        let root = Root::from_cmdline(text)?;
        let get = |item: &str| {
            text.split_ascii_whitespace().find_map(|w| w.strip_prefix(item)?.strip_prefix('=')).unwrap_or_default()
        };
        let version = get("slot.version");
        if !holdfast_format::release::valid_version(version) {
            let expected = "1 to 64 letters, digits and ._+-";
            return Err(CmdlineError::Item { item: "slot.version", found: version.into(), expected });
        }
        let epoch = get("slot.epoch");
        let number = epoch.parse().ok().filter(|e| *e <= holdfast_format::release::MAX_EPOCH);
        let epoch = number.ok_or(CmdlineError::Item {
            item: "slot.epoch",
            found: epoch.into(),
            expected: "a number from 0 to 63",
        })?;
        Ok(Cmdline { root, version: version.into(), epoch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_found_and_faults_named() {
        let root = Root { hash: [7; 32], blocks: 100 };
        let good = format!("{} slot.version=1.2.3 slot.epoch=4 console=ttyS0\n", root.to_cmdline());
        assert_eq!(Cmdline::parse(&good).unwrap(), Cmdline { root, version: "1.2.3".into(), epoch: 4 });
        for (item, from, to) in [
            ("slot.root", "slot.root=07", "slot.root=zz"),
            ("slot.blocks", "slot.blocks=100", "slot.blocks=0"),
            ("slot.version", "slot.version=1.2.3", ""),
            ("slot.epoch", "slot.epoch=4", "slot.epoch=64"),
        ] {
            let error = Cmdline::parse(&good.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(item), "{error}");
        }
    }
}
