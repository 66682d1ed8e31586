//! PCR arithmetic: what systemd-stub 252 measures into PCR 11, and the phase words that follow.
//!
//! Start from 32 zero bytes. For each section that is present and not empty, in the fixed order of
//! [`MEASURED_SECTIONS`], extend with its name (NUL included), then with its data. For each phase word, extend with
//! the word (no NUL). Only the SHA-256 bank is used.
//!
//! Stubs from 254 on measure more sections: the version of the stub is pinned by a test that boots and compares.

use sha2::Sha256;

/// A SHA-256 digest: a PCR value or a policy digest.
pub type Digest = [u8; 32];

/// A PCR that nobody has extended, and the start of every policy digest.
pub const ZERO: Digest = [0; 32];

/// Sections in the order in which they are measured, whatever their order in the file.
pub const MEASURED_SECTIONS: [&str; 7] = [".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".pcrpkey"];

/// The PCR of UKI sections and phase words.
pub const PCR_UKI: u32 = 11;
/// The PCR of what the boot entry or credentials override; must stay zero.
pub const PCR_OVERRIDES: u32 = 12;
/// The PCR of system extensions; must stay zero.
pub const PCR_SYSEXT: u32 = 13;
/// The PCR into which PID 1 measures the SITE document. Without shim nobody else uses it.
pub const PCR_SITE: u32 = 14;

/// Phase words, in the order in which they are extended into [`PCR_UKI`].
pub mod phase {
    /// By PID 1, first thing. The signed policy is for the state after this word.
    pub const ENTER_PID1: &str = "enter-pid1";
    /// Right after the vault was unsealed, before any guest or network code: no second unseal.
    pub const VAULT_OPEN: &str = "vault-open";
    /// The node is up.
    pub const READY: &str = "ready";
    /// An orderly stop has begun.
    pub const SHUTDOWN: &str = "shutdown";
}

/// SHA-256 over the concatenation of `parts`.
#[must_use]
pub fn sha256(parts: &[&[u8]]) -> Digest {
    use sha2::Digest as _;
    let mut h = Sha256::new();
    parts.iter().for_each(|p| h.update(p));
    h.finalize().into()
}

/// The PCR after `TPM2_PCR_Extend` with `digest`.
#[must_use]
pub fn extend(pcr: &Digest, digest: &Digest) -> Digest {
    sha256(&[pcr, digest])
}

/// The digest that extends a PCR for a phase word.
#[must_use]
pub fn phase_digest(word: &str) -> Digest {
    sha256(&[word.as_bytes()])
}

/// PCR 11 after a boot with these sections (in any order; empty and unmeasured ones are left out) and phase words.
#[must_use]
pub fn predict_pcr11<'a>(sections: impl IntoIterator<Item = (&'a str, &'a [u8])>, phases: &[&str]) -> Digest {
    let given: Vec<(&str, &[u8])> = sections.into_iter().collect();
    let mut pcr = ZERO;
    for name in MEASURED_SECTIONS {
        let Some((_, data)) = given.iter().find(|(n, d)| *n == name && !d.is_empty()) else {
            continue;
        };
        pcr = extend(&pcr, &sha256(&[name.as_bytes(), &[0]]));
        pcr = extend(&pcr, &sha256(&[data]));
    }
    phases.iter().fold(pcr, |pcr, word| extend(&pcr, &phase_digest(word)))
}

/// [`PCR_SITE`] after PID 1 has measured these document bytes ([`crate::site`]); zero when there is no document.
#[must_use]
pub fn predict_site(document: Option<&[u8]>) -> Digest {
    document.map_or(ZERO, |d| extend(&ZERO, &sha256(&[d])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prediction_follows_the_recipe_step_by_step() {
        // Written out without the functions under test, so that a slip in them shows.
        use sha2::Digest as _;
        let h = |b: &[u8]| -> Vec<u8> { Sha256::digest(b).to_vec() };
        let step = |p: &[u8], m: &[u8]| h(&[p, &h(m)].concat());
        let mut p = vec![0u8; 32];
        for m in [b".linux\0".as_slice(), b"K", b".cmdline\0", b"quiet", b"enter-pid1"] {
            p = step(&p, m);
        }
        let got = predict_pcr11(
            [(".cmdline", b"quiet".as_slice()), (".osrel", b""), (".pcrsig", b"x"), (".linux", b"K")],
            &["enter-pid1"],
        );
        assert_eq!(got.to_vec(), p);
    }

    #[test]
    fn the_golden_value_never_changes() {
        let got = predict_pcr11(
            [
                (".linux", b"kernel".as_slice()),
                (".osrel", b"os"),
                (".cmdline", b"c"),
                (".initrd", b"i"),
                (".pcrpkey", b"p"),
            ],
            &[phase::ENTER_PID1],
        );
        assert_eq!(hex::encode(got), "e858571c913e473134db33f129c617780e15c85ca0b8698165b17f5d476ab6a3");
    }
}
