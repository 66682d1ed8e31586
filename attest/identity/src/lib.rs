//! Who this device is: its keys, its measured state, and the key of its data.
//!
//! 1. Keys that a TPM holds never leave it; without a TPM everything still works, and [`Strength`] says what is weaker.
//! 2. One thread owns the TPM. Every operation has a deadline; calls block, so async callers use a blocking thread.
//! 3. The vault key is sealed to the release's signed policy: a new signed image opens it, an older epoch, another image
//!    or a second attempt after the phase `vault-open` does not.
//! 4. Making keys and making the vault can be cut at any write and run again.
//! 5. TPM types stop here: others see digests, points, DER and PEM.
//!
//! Reading order: [`types`], [`strength`], [`identity`] (the trait and which of the two it is), [`tpm`] (the owner thread and
//! its operations), [`hardware`] and [`software`] (the two identities), [`certificates`], [`escrow`], [`eventlog`],
//! [`vault`].

pub mod certificates;
pub mod escrow;
pub mod eventlog;
pub mod hardware;
pub mod identity;
pub mod software;
pub mod strength;
pub mod tpm;
pub mod types;
pub mod vault;

mod files;

pub use certificates::Certificates;
pub use hardware::HardwareIdentity;
pub use identity::{Identity, Options, open};
pub use software::SoftwareIdentity;
pub use strength::{KeyProtection, Strength};
pub use tpm::quote::Quote;
pub use tpm::{Condition, Tpm, TpmError, TpmInfo};
pub use types::{IdentityError, Point, PublicKey, SealedKey, Use, VaultKey};
pub use vault::{Recovered, Vault, VaultError};
