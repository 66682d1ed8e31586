//! The TPM identity over the kernel's resource manager. Runs where `HOLDFAST_TEST_TCTI` names a TPM whose keys and PCRs may be
//! changed (a virtual machine of the test harness); elsewhere it says that it does not.

use std::time::{Instant, SystemTime};

use holdfast_format::pcr::{self, phase};
use holdfast_format::policy::SignedPolicies;
use holdfast_identity::tpm::policy::{KEY_FILE, SIGNATURE_FILE};
use holdfast_identity::{Certificates, HardwareIdentity, Identity as _, KeyProtection, Tpm, VaultKey};
use p256::ecdsa::SigningKey;

#[test]
fn keys_quote_seal_and_epoch_work_through_the_kernel() {
    let Ok(tcti) = std::env::var("HOLDFAST_TEST_TCTI") else {
        println!("NOT RUN: HOLDFAST_TEST_TCTI names no TPM");
        return;
    };
    let start = Instant::now();
    let step = |name: &str| println!("{:6} ms  {name}", start.elapsed().as_millis());
    let dir = tempfile::tempdir().unwrap();
    let tpm = Tpm::start(&tcti).unwrap();
    for firmware in [0, 4, 7] {
        tpm.extend_pcr(firmware, &[1; 32]).unwrap();
    }
    tpm.extend_phase(phase::ENTER_PID1).unwrap();
    let pcr11 = tpm.read_pcrs(&[11]).unwrap()[0].1;
    drop(tpm);
    let key = SigningKey::from_slice(&[0x11; 32]).unwrap();
    std::fs::write(dir.path().join(SIGNATURE_FILE), SignedPolicies::sign(&pcr11, 1, &key).encode()).unwrap();
    let pem = holdfast_format::keys::public_pem(key.verifying_key()).unwrap();
    std::fs::write(dir.path().join(KEY_FILE), pem).unwrap();
    step("TPM found, PCRs extended");

    let identity = HardwareIdentity::open(&tcti, dir.path()).unwrap();
    step("identity open, keys made");
    assert_eq!(identity.strength().vault_key, KeyProtection::SealedWithEpoch, "{}", identity.strength());
    identity.sign_sha256(&[1; 32]).unwrap();
    step("signed");
    Certificates::issue(&identity, SystemTime::now()).unwrap();
    step("certificates issued");
    let quote = identity.quote(b"0123456789ab").unwrap().unwrap();
    assert_eq!(quote.pcrs[11].1, pcr11);
    step("quoted");
    let vault_key = VaultKey::random().unwrap();
    let sealed = identity.seal(&vault_key).unwrap();
    step("sealed");
    assert_eq!(identity.unseal(&sealed).unwrap().expose(), vault_key.expose());
    step("unsealed");
    identity.commit_epoch(1).unwrap();
    step("epoch committed");
    assert_eq!(identity.unseal(&sealed).unwrap().expose(), vault_key.expose());
    identity.extend_phase(phase::VAULT_OPEN).unwrap();
    assert_ne!(pcr11, pcr::ZERO);
    assert!(identity.unseal(&sealed).is_err());
    step("closed behind us");
}
