//! The vault over a platform of plain files that can be cut off at any step.

use std::cell::{Cell, RefCell};
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::platform::Platform;
use super::*;
use crate::{Point, PublicKey, Quote, SoftwareIdentity, Strength, Use};

/// A machine: its "encrypted device" is a file beside the partition, XORed with the key's first byte when written.
struct Machine {
    dir: tempfile::TempDir,
    /// Steps until the power goes; counts down.
    fuse: Cell<u32>,
    open: RefCell<Option<PathBuf>>,
    mounted: RefCell<Option<PathBuf>>,
    grown: Cell<u32>,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("partition"), vec![0xa5; 4 << 20]).unwrap();
        fs::write(dir.path().join("seed"), vec![0x42; 64 << 10]).unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        Self {
            dir,
            fuse: Cell::new(u32::MAX),
            open: RefCell::new(None),
            mounted: RefCell::new(None),
            grown: Cell::new(0),
        }
    }

    fn options(&self) -> VaultOptions {
        let at = |name| self.dir.path().join(name);
        VaultOptions { partition: at("partition"), mount_point: at("data"), seed: at("seed") }
    }

    fn reboot(&self) {
        self.fuse.set(u32::MAX);
        *self.open.borrow_mut() = None;
        *self.mounted.borrow_mut() = None;
    }

    fn burn(&self) -> Result<(), String> {
        let left = self.fuse.get();
        self.fuse.set(left.saturating_sub(1));
        if left == 0 { Err("power cut".into()) } else { Ok(()) }
    }
}

impl Platform for Machine {
    fn active(&self, _: &str) -> Result<Option<PathBuf>, String> {
        Ok(self.open.borrow().clone())
    }

    fn activate(&self, _: &str, _: &Path, _: u64, key: &VaultKey) -> Result<PathBuf, String> {
        self.burn()?;
        assert!(self.open.borrow().is_none(), "opened twice");
        let device = self.dir.path().join(format!("device-{}", hex::encode(&key.expose()[..8])));
        if !device.exists() {
            fs::write(&device, vec![0; 3 << 20]).unwrap();
        }
        *self.open.borrow_mut() = Some(device.clone());
        Ok(device)
    }

    fn tear_down(&self, _: &str, _: &Path) -> Result<(), String> {
        self.burn()?;
        *self.mounted.borrow_mut() = None;
        *self.open.borrow_mut() = None;
        Ok(())
    }

    fn is_mounted(&self, device: &Path, _: &Path) -> bool {
        self.mounted.borrow().as_deref() == Some(device)
    }

    fn mount(&self, device: &Path, _: &Path) -> Result<(), String> {
        self.burn()?;
        if fs::read(device).unwrap()[..4] != [0x42; 4] {
            return Err("not ext4".into());
        }
        *self.mounted.borrow_mut() = Some(device.to_owned());
        Ok(())
    }

    fn grow(&self, _: &Path, _: &Path) -> Result<(), String> {
        self.burn()?;
        self.grown.set(self.grown.get() + 1);
        Ok(())
    }
}

/// An identity that records what is extended. Without a policy it keeps keys in clear; with one it "seals" to it, and unseals only
/// while the same is in force.
struct Recorder {
    inner: SoftwareIdentity,
    extended: std::sync::Mutex<Vec<String>>,
    /// The policy in force; 0: none, nothing can be sealed.
    policy: std::sync::atomic::AtomicU8,
}

impl Recorder {
    fn new() -> Self {
        Self {
            inner: SoftwareIdentity::new(Path::new("/nonexistent"), "test"),
            extended: std::sync::Mutex::default(),
            policy: 0.into(),
        }
    }

    fn enforce(&self, policy: u8) {
        self.policy.store(policy, std::sync::atomic::Ordering::Relaxed);
    }

    fn policy(&self) -> u8 {
        self.policy.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn extended(&self) -> Vec<String> {
        std::mem::take(&mut self.extended.lock().unwrap())
    }
}

impl Identity for Recorder {
    fn strength(&self) -> Strength {
        self.inner.strength()
    }
    fn public_key(&self, usage: Use) -> Result<Option<PublicKey>, IdentityError> {
        self.inner.public_key(usage)
    }
    fn sign_sha256(&self, digest: &[u8; 32]) -> Result<[u8; 64], IdentityError> {
        self.inner.sign_sha256(digest)
    }
    fn shared_point(&self, peer: &Point) -> Result<Point, IdentityError> {
        self.inner.shared_point(peer)
    }
    fn quote(&self, _: &[u8]) -> Result<Option<Quote>, IdentityError> {
        Ok(None)
    }
    fn extend_phase(&self, word: &str) -> Result<(), IdentityError> {
        self.extended.lock().unwrap().push(word.into());
        Ok(())
    }
    fn extend(&self, pcr: u32, digest: &[u8; 32]) -> Result<(), IdentityError> {
        self.extended.lock().unwrap().push(format!("{pcr}:{}", hex::encode(&digest[..4])));
        Ok(())
    }
    fn endorsement_certificates(&self) -> Result<Vec<Vec<u8>>, IdentityError> {
        Ok(Vec::new())
    }
    fn kept_device_certificate(&self) -> Result<Option<Vec<u8>>, IdentityError> {
        Ok(None)
    }
    fn keep_device_certificate(&self, _: &[u8]) -> Result<(), IdentityError> {
        Ok(())
    }
    fn seal(&self, key: &VaultKey) -> Result<SealedKey, IdentityError> {
        match self.policy() {
            0 => self.inner.seal(key),
            policy => {
                let private = key.expose().iter().map(|b| b ^ policy).collect();
                Ok(SealedKey::Tpm { epoch_bound: true, private, public: vec![policy] })
            }
        }
    }
    fn unseal(&self, sealed: &SealedKey) -> Result<VaultKey, IdentityError> {
        match sealed {
            SealedKey::Tpm { private, public, .. } if public[..] == [self.policy()] => {
                let bytes: Vec<u8> = private.iter().map(|b| b ^ self.policy()).collect();
                Ok(VaultKey::new(bytes.into()).unwrap())
            }
            SealedKey::Tpm { .. } => Err(IdentityError::Tpm(TpmError::StaysSealed {
                condition: Condition::Boot,
                reason: "another policy".into(),
            })),
            SealedKey::Clear(_) => self.inner.unseal(sealed),
        }
    }
    fn commit_epoch(&self, _: u32) -> Result<(), IdentityError> {
        Ok(())
    }
}

#[test]
fn a_vault_is_made_once_then_opened_and_a_restarted_agent_finds_it_open() {
    let (machine, identity) = (Machine::new(), Recorder::new());
    let made = open_or_create_on(&machine.options(), &identity, &machine).unwrap();
    assert!(made.created && made.protection == KeyProtection::Clear);
    let first = identity.extended();
    assert!(first[0].starts_with("15:") && first[1] == "vault-open", "{first:?}");

    let again = open_or_create_on(&machine.options(), &identity, &machine).unwrap();
    assert!(!again.created && again.key.is_none());
    assert_eq!(identity.extended(), Vec::<String>::new(), "nothing is extended twice in a boot");

    machine.reboot();
    let opened = open_or_create_on(&machine.options(), &identity, &machine).unwrap();
    assert!(!opened.created);
    assert_eq!(opened.key.unwrap().expose(), made.key.unwrap().expose());
    assert_eq!(identity.extended(), first, "the same volume has the same identity in every boot");
    assert!(machine.grown.get() >= 3, "a larger partition is noticed at every start");
}

#[test]
fn power_cut_at_any_step_of_making_leaves_something_that_the_next_boot_completes() {
    for fuse in 0..12 {
        let (machine, identity) = (Machine::new(), Recorder::new());
        machine.fuse.set(fuse);
        let cut = open_or_create_on(&machine.options(), &identity, &machine);
        let finished = cut.is_ok();
        machine.reboot();
        let vault = open_or_create_on(&machine.options(), &identity, &machine)
            .unwrap_or_else(|e| panic!("after a cut at step {fuse}: {e}"));
        assert_eq!(vault.created, !finished, "a finished volume is never made anew (cut at step {fuse})");
    }
}

#[test]
fn an_agent_killed_while_making_starts_over_in_the_same_boot() {
    for fuse in 0..6 {
        let (machine, identity) = (Machine::new(), Recorder::new());
        machine.fuse.set(fuse);
        let _ = open_or_create_on(&machine.options(), &identity, &machine);
        machine.fuse.set(u32::MAX);
        open_or_create_on(&machine.options(), &identity, &machine).unwrap();
    }
}

#[test]
fn a_key_that_stays_sealed_changes_nothing_and_escrow_brings_it_back() {
    let (machine, identity) = (Machine::new(), Recorder::new());
    identity.enforce(1);
    let key = open_or_create_on(&machine.options(), &identity, &machine).unwrap().key.unwrap();
    machine.reboot();
    identity.extended();
    let before = fs::read(machine.options().partition).unwrap();
    identity.enforce(2);
    let error = open_or_create_on(&machine.options(), &identity, &machine).unwrap_err();
    assert!(error.may_be_recovered(), "{error}");

    let wrong = recover_on(&machine.options(), &identity, VaultKey::random().unwrap(), &machine);
    assert!(matches!(&wrong, Err(e @ VaultError::WrongKey { .. }) if !e.may_be_recovered()), "{wrong:?}");
    assert!(fs::read(machine.options().partition).unwrap() == before, "the partition was written");
    assert_eq!(identity.extended(), Vec::<String>::new(), "the door is closed only behind an open vault");

    let vault = recover_on(&machine.options(), &identity, key.clone(), &machine).unwrap();
    assert_eq!((vault.recovered, vault.protection), (Some(Recovered::Resealed), KeyProtection::SealedWithEpoch));
    assert_eq!(vault.key.unwrap().expose(), key.expose());
    assert!(machine.mounted.borrow().is_some());
    machine.reboot();
    let again = open_or_create_on(&machine.options(), &identity, &machine).unwrap();
    assert_eq!((again.created, again.recovered), (false, None), "the new policy opens it by itself");
}

#[test]
fn a_recovered_key_that_cannot_be_sealed_is_not_left_in_clear() {
    let (machine, identity) = (Machine::new(), Recorder::new());
    identity.enforce(1);
    let key = open_or_create_on(&machine.options(), &identity, &machine).unwrap().key.unwrap();
    machine.reboot();
    let before = fs::read(machine.options().partition).unwrap();
    identity.enforce(0);
    let vault = recover_on(&machine.options(), &identity, key, &machine).unwrap();
    assert!(matches!(vault.recovered, Some(Recovered::LeftAsItWas(_))), "{:?}", vault.recovered);
    assert_eq!(vault.protection, KeyProtection::SealedWithEpoch);
    assert!(fs::read(machine.options().partition).unwrap() == before, "the sealed key was replaced");
    machine.reboot();
    identity.enforce(1);
    assert!(
        !open_or_create_on(&machine.options(), &identity, &machine).unwrap().created,
        "the old image still opens it"
    );
}

#[test]
fn power_cut_at_any_step_of_a_recovery_leaves_a_vault_that_one_of_the_two_keys_opens() {
    for fuse in 0..4 {
        let (machine, identity) = (Machine::new(), Recorder::new());
        identity.enforce(1);
        let key = open_or_create_on(&machine.options(), &identity, &machine).unwrap().key.unwrap();
        machine.reboot();
        identity.enforce(2);
        machine.fuse.set(fuse);
        let _ = recover_on(&machine.options(), &identity, key.clone(), &machine);
        machine.reboot();
        let vault = open_or_create_on(&machine.options(), &identity, &machine)
            .or_else(|_| recover_on(&machine.options(), &identity, key, &machine))
            .unwrap_or_else(|e| panic!("after a cut at step {fuse}: {e}"));
        assert!(!vault.created);
    }
}

#[test]
fn only_a_boot_that_the_key_was_not_sealed_to_asks_for_escrow() {
    let sealed = |condition| VaultError::Key {
        partition: "/dev/x".into(),
        source: IdentityError::Tpm(TpmError::StaysSealed { condition, reason: String::new() }),
    };
    assert!(sealed(Condition::Boot).may_be_recovered());
    assert!(!sealed(Condition::Epoch).may_be_recovered(), "an image that is too old must not come by the key");
    assert!(!sealed(Condition::Phase).may_be_recovered(), "the next boot opens it");
    let gone = VaultError::Key { partition: "/dev/x".into(), source: IdentityError::TpmGone("no TPM".into()) };
    assert!(!gone.may_be_recovered());
}

#[test]
fn a_header_whose_key_was_exchanged_is_not_mounted() {
    let (machine, identity) = (Machine::new(), Recorder::new());
    open_or_create_on(&machine.options(), &identity, &machine).unwrap();
    machine.reboot();
    // Another key in both copies, with a right checksum: what somebody without the key can do.
    let file = fs::OpenOptions::new().read(true).write(true).open(machine.options().partition).unwrap();
    for offset in header::COPY_OFFSETS {
        let mut copy = vec![0; 4096];
        file.read_exact_at(&mut copy, offset).unwrap();
        copy[40] ^= 1;
        let end = 40 + 64 + 32;
        let crc = crc32fast::hash(&copy[..end]);
        copy[end..end + 4].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&copy, offset).unwrap();
    }
    identity.extended();
    let error = open_or_create_on(&machine.options(), &identity, &machine).unwrap_err();
    assert!(matches!(error, VaultError::NotOurs { .. }), "{error}");
    assert!(machine.mounted.borrow().is_none());
}

#[test]
fn a_partition_too_small_for_the_seed_is_named() {
    let (machine, identity) = (Machine::new(), Recorder::new());
    fs::write(machine.options().partition, vec![0; 1 << 20]).unwrap();
    let error = open_or_create_on(&machine.options(), &identity, &machine).unwrap_err().to_string();
    assert!(error.contains("expected at least 1114112 bytes, found 1048576"), "{error}");
}

#[test]
fn an_erased_vault_is_made_anew() {
    let (machine, identity) = (Machine::new(), Recorder::new());
    open_or_create_on(&machine.options(), &identity, &machine).unwrap();
    machine.reboot();
    erase(&machine.options().partition).unwrap();
    assert!(open_or_create_on(&machine.options(), &identity, &machine).unwrap().created);
}
