//! Names of units.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Longest name, in bytes.
pub const MAX_NAME: usize = 64;

/// A unit's name: `[a-z0-9][a-z0-9.-]*`, at most [`MAX_NAME`] bytes.
///
/// It is used as a directory name (the cgroup) and in log lines, hence the small alphabet. By
/// convention it begins with the kind of program: `node`, `fetch.1`, `netsvc.<id>`, `vmm.<app uuid>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnitName(String);

impl UnitName {
    /// Checks `name` against the alphabet and length.
    pub fn new(name: impl Into<String>) -> Result<UnitName, NameError> {
        let name = name.into();
        let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = name.as_bytes();
        let valid = bytes.len() <= MAX_NAME
            && bytes.first().is_some_and(|&b| ok(b))
            && bytes.iter().all(|&b| ok(b) || b == b'.' || b == b'-');
        if valid { Ok(UnitName(name)) } else { Err(NameError { found: name.chars().take(2 * MAX_NAME).collect() }) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for UnitName {
    type Error = NameError;
    fn try_from(name: String) -> Result<UnitName, NameError> {
        UnitName::new(name)
    }
}

impl std::str::FromStr for UnitName {
    type Err = NameError;
    fn from_str(name: &str) -> Result<UnitName, NameError> {
        UnitName::new(name)
    }
}

impl From<UnitName> for String {
    fn from(name: UnitName) -> String {
        name.0
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is no unit name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unit name {found:?}: expected a-z or 0-9, then a-z, 0-9, '.' or '-', at most {MAX_NAME} bytes")]
pub struct NameError {
    /// The text as given, cut at a readable length.
    pub found: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_accepted_exactly_within_the_alphabet() {
        for good in ["node", "a", "0", "vmm.0f8fad5b-d9cb-469f-a165-70867728950e", "fetch.1", &"x".repeat(64)] {
            assert_eq!(UnitName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-a", ".a", "A", "a/b", "a b", "a_b", "ä", "a\0", &"x".repeat(65)] {
            assert!(UnitName::new(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn json_form_is_checked_too() {
        assert!(serde_json::from_str::<UnitName>("\"node\"").is_ok());
        assert!(serde_json::from_str::<UnitName>("\"../node\"").is_err());
    }
}
