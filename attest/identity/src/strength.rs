//! What an identity rests on, and what is weaker than it could be. The same text goes to the console and the
//! controller.
#![forbid(unsafe_code)]

use serde::Serialize;

/// How the vault key is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyProtection {
    /// Sealed to the release's policy, older epochs refused.
    SealedWithEpoch,
    /// Sealed to the release's policy; an older signed image could open it too.
    Sealed,
    /// Beside the data, in clear.
    Clear,
}

/// What an identity rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Strength {
    /// Maker and firmware of the TPM, or `None`.
    pub tpm: Option<String>,
    /// How the vault key is, or would be, kept.
    pub vault_key: KeyProtection,
    /// One sentence for each thing that is weaker than with a TPM, a measured boot and a signed policy.
    pub weaknesses: Vec<String>,
}

impl std::fmt::Display for Strength {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.tpm {
            Some(tpm) => write!(f, "keys in the TPM ({tpm})")?,
            None => f.write_str("no TPM: keys in files")?,
        }
        f.write_str(match self.vault_key {
            KeyProtection::SealedWithEpoch => ", vault key sealed to the signed policy with epoch",
            KeyProtection::Sealed => ", vault key sealed to the signed policy without epoch",
            KeyProtection::Clear => ", vault key in clear",
        })?;
        for weakness in &self.weaknesses {
            write!(f, "; {weakness}")?;
        }
        Ok(())
    }
}
