//! Keys, TPM, sealing, quotes, the vault
