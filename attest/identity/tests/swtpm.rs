//! The TPM identity against an emulator. The wrong way to see it would be to ask this crate whether it is right: signatures
//! are checked with p256, quotes and attributes with tpm2-tools, certificates with openssl.
//!
//! Every test starts its own `swtpm` on loopback; without one installed the tests say so and do nothing.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use holdfast_format::pcr::{self, phase};
use holdfast_format::policy::{EPOCH_INDEX, SignedPolicies};
use holdfast_identity::certificates::pem_to_der;
use holdfast_identity::tpm::TpmError;
use holdfast_identity::tpm::policy::{KEY_FILE, SIGNATURE_FILE};
use holdfast_identity::{
    Certificates, Condition, HardwareIdentity, Identity, IdentityError, KeyProtection, SealedKey, Use, VaultKey, escrow,
};
use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use p256::ecdsa::{DerSignature, Signature, SigningKey, VerifyingKey};

/// An emulator with its state directory and a boot directory.
struct Machine {
    dir: tempfile::TempDir,
    port: u16,
    process: Option<Child>,
}

impl Machine {
    /// `None`, with a line, when there is no swtpm.
    fn new() -> Option<Self> {
        Self::manufactured(&[])
    }

    /// With further options of `swtpm_setup`.
    fn manufactured(options: &[&str]) -> Option<Self> {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(dir.path().join("tpm")).unwrap();
        std::fs::create_dir(dir.path().join("boot")).unwrap();
        let state = dir.path().join("tpm");
        let setup = Command::new("swtpm_setup")
            .args(["--tpm2", "--pcr-banks", "sha256", "--tpmstate"])
            .arg(&state)
            .args(options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        match setup {
            Ok(status) => assert!(status.success(), "swtpm_setup failed"),
            Err(e) => {
                println!("NOT RUN: swtpm_setup: {e} (install swtpm and swtpm-tools)");
                return None;
            }
        }
        let mut machine = Self { dir, port: 0, process: None };
        machine.power_on();
        Some(machine)
    }

    /// Starts the emulator: PCRs are zero, as after a reset.
    fn power_on(&mut self) {
        self.port = free_port_pair();
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"])
            .arg(format!("dir={}", self.dir.path().join("tpm").display()))
            .arg("--server")
            .arg(format!("type=tcp,bindaddr=127.0.0.1,port={}", self.port))
            .arg("--ctrl")
            .arg(format!("type=tcp,bindaddr=127.0.0.1,port={}", self.port + 1))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("swtpm");
        self.process = Some(process);
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port + 1)).is_err() {
            assert!(start.elapsed() < Duration::from_secs(10), "swtpm does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// As if the plug were pulled: no shutdown command.
    fn power_off(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("kill swtpm");
            process.wait().expect("wait for swtpm");
        }
    }

    fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    fn boot_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("boot")
    }

    fn open(&self) -> HardwareIdentity {
        HardwareIdentity::open(&self.tcti(), &self.boot_dir()).expect("TPM identity")
    }

    /// A reboot into `image`: fresh PCRs, extended as firmware, stub and PID 1 do it.
    fn boot(&mut self, image: &Image) -> HardwareIdentity {
        self.power_off();
        self.power_on();
        image.install(&self.boot_dir());
        let early = holdfast_identity::Tpm::start(&self.tcti()).expect("TPM");
        for firmware in [0, 4, 7] {
            early.extend_pcr(firmware, &[1; 32]).unwrap();
        }
        for (name, data) in &image.sections {
            early.extend_pcr(11, &pcr::sha256(&[name.as_bytes(), &[0]])).unwrap();
            early.extend_pcr(11, &pcr::sha256(&[data])).unwrap();
        }
        early.extend_phase(phase::ENTER_PID1).unwrap();
        drop(early);
        self.open()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.power_off();
    }
}

/// swtpm's TCTI expects the control channel on the port after the data channel.
fn free_port_pair() -> u16 {
    for _attempt in 0..200 {
        let first = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = first.local_addr().unwrap().port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
    panic!("no two neighbouring ports are free");
}

/// A UKI as far as the TPM sees it.
struct Image {
    sections: Vec<(&'static str, Vec<u8>)>,
    policies: SignedPolicies,
    key: SigningKey,
}

impl Image {
    fn new(kernel: &str, epoch: u32) -> Self {
        Self::signed(kernel, epoch, release_key())
    }

    fn signed(kernel: &str, epoch: u32, key: SigningKey) -> Self {
        let sections = vec![(".linux", kernel.as_bytes().to_vec()), (".cmdline", b"slot.root=00".to_vec())];
        let given = sections.iter().map(|(n, d)| (*n, d.as_slice()));
        let pcr11 = pcr::predict_pcr11(given, &[phase::ENTER_PID1]);
        Self { sections, policies: SignedPolicies::sign(&pcr11, epoch, &key), key }
    }

    fn install(&self, boot_dir: &Path) {
        std::fs::write(boot_dir.join(SIGNATURE_FILE), self.policies.encode()).unwrap();
        let pem = holdfast_format::keys::public_pem(self.key.verifying_key()).unwrap();
        std::fs::write(boot_dir.join(KEY_FILE), pem).unwrap();
    }
}

fn release_key() -> SigningKey {
    SigningKey::from_slice(&[0x11; 32]).unwrap()
}

fn verifying_key(identity: &dyn Identity, usage: Use) -> VerifyingKey {
    let point = identity.public_key(usage).unwrap().unwrap().point;
    VerifyingKey::from_sec1_bytes(&point.to_sec1()).expect("a point on P-256")
}

/// Runs a tool of tpm2-tools against the machine; the connection of ours must be closed.
fn tool(machine: &Machine, name: &str, args: &[&str]) -> Option<String> {
    let out = Command::new(name).args(args).env("TPM2TOOLS_TCTI", machine.tcti()).output();
    match out {
        Ok(out) => {
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            assert!(out.status.success(), "{name} {args:?}: {text}{}", String::from_utf8_lossy(&out.stderr));
            Some(text)
        }
        Err(e) => {
            println!("NOT CHECKED with {name}: {e}");
            None
        }
    }
}

#[test]
fn keys_stay_in_the_tpm_and_come_back_after_a_power_cut() {
    let Some(mut machine) = Machine::new() else {
        return;
    };
    let first = machine.open();
    let keys: Vec<_> = [Use::Device, Use::Agreement, Use::Quote, Use::Endorsement]
        .map(|u| first.public_key(u).unwrap().unwrap())
        .into();
    drop(first);
    for (handle, wanted) in [
        ("0x817fffff", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign"),
        ("0x81000002", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"),
        ("0x81000004", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"),
        ("0x81000005", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|decrypt"),
    ] {
        if let Some(text) = tool(&machine, "tpm2_readpublic", &["-c", handle]) {
            let line = text.lines().skip_while(|l| !l.starts_with("attributes")).nth(1).unwrap_or_default();
            assert_eq!(line.trim(), format!("value: {wanted}"), "{handle}");
            assert!(text.contains("NIST p256"), "{text}");
        }
    }
    machine.power_off();
    machine.power_on();
    let again = machine.open();
    for (usage, key) in [Use::Device, Use::Agreement, Use::Quote, Use::Endorsement].into_iter().zip(keys) {
        assert_eq!(again.public_key(usage).unwrap().unwrap(), key, "{usage:?}");
    }
}

#[test]
fn signatures_and_agreements_fit_the_public_keys() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let identity = machine.open();
    let signature = Signature::from_slice(&identity.sign_sha256(&[5; 32]).unwrap()).unwrap();
    verifying_key(&identity, Use::Device).verify_prehash(&[5; 32], &signature).unwrap();

    let theirs = p256::SecretKey::from_slice(&[3; 32]).unwrap();
    let their_point = holdfast_identity::Point::from_sec1(&theirs.public_key().to_sec1_bytes());
    // `to_sec1_bytes` is uncompressed for P-256.
    let shared = identity.shared_point(&their_point.unwrap()).unwrap();
    let ours = verifying_key(&identity, Use::Agreement);
    let wanted = p256::ecdh::diffie_hellman(theirs.to_nonzero_scalar(), ours.as_affine());
    assert_eq!(shared.x[..], wanted.raw_secret_bytes()[..]);
    let off_curve = holdfast_identity::Point { x: [1; 32], y: [1; 32] };
    assert!(identity.shared_point(&off_curve).is_err());

    let key = VaultKey::random().unwrap();
    let kept = escrow::wrap(&identity, &key).unwrap();
    assert_eq!(escrow::unwrap(&identity, &kept).unwrap().expose(), key.expose());
}

#[test]
fn the_device_certificate_outlives_disk_and_power_and_is_replaced_when_it_changes() {
    let Some(mut machine) = Machine::new() else {
        return;
    };
    let identity = machine.open();
    assert_eq!(identity.kept_device_certificate().unwrap(), None);
    let first = Certificates::issue(&identity, SystemTime::now()).unwrap();
    identity.keep_device_certificate(&pem_to_der(&first.device).unwrap()).unwrap();
    drop(identity);
    machine.power_off();
    machine.power_on();
    let identity = machine.open();
    assert_eq!(identity.kept_device_certificate().unwrap(), pem_to_der(&first.device));
    assert_eq!(Certificates::issue(&identity, SystemTime::now()).unwrap().device, first.device);
    // Longer than one write to NV memory.
    let mut other = vec![0x30, 0x82, 0x05, 0x00];
    other.resize(4 + 0x500, 7);
    identity.keep_device_certificate(&other).unwrap();
    assert_eq!(identity.kept_device_certificate().unwrap(), Some(other));
    assert!(identity.keep_device_certificate(b"no certificate").is_err());
}

#[test]
fn a_key_sealed_under_another_release_key_is_told_from_one_of_a_newer_epoch() {
    let Some(mut machine) = Machine::new() else {
        return;
    };
    let key = VaultKey::random().unwrap();
    let identity = machine.boot(&Image::new("kernel A", 1));
    let sealed = identity.seal(&key).unwrap();
    let rotated = Image::signed("kernel A", 1, SigningKey::from_slice(&[0x22; 32]).unwrap());
    let identity = machine.boot(&rotated);
    let refused = identity.unseal(&sealed).unwrap_err();
    let IdentityError::Tpm(TpmError::StaysSealed { condition, reason }) = refused else { panic!("{refused}") };
    assert_eq!(condition, Condition::Boot, "{reason}");
    // What escrow brings back is sealed to the new key.
    let renewed = identity.seal(&key).unwrap();
    assert_eq!(identity.unseal(&renewed).unwrap().expose(), key.expose());

    identity.commit_epoch(2).unwrap();
    let refused = identity.unseal(&renewed).unwrap_err();
    let IdentityError::Tpm(TpmError::StaysSealed { condition, reason }) = refused else { panic!("{refused}") };
    assert_eq!(condition, Condition::Epoch, "{reason}");
}

#[test]
fn a_quote_convinces_an_independent_verifier() {
    let Some(mut machine) = Machine::new() else {
        return;
    };
    let identity = machine.boot(&Image::new("kernel A", 1));
    let nonce = b"0123456789ab";
    let quote = identity.quote(nonce).unwrap().unwrap();
    let key = verifying_key(&identity, Use::Quote);
    key.verify(&quote.attest, &DerSignature::from_bytes(quote.signature_der.as_slice()).unwrap()).unwrap();
    assert_eq!(quote.pcrs.iter().map(|(i, _)| *i).collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());
    assert!(quote.pcrs[11].1 != [0; 32] && quote.pcrs[12].1 == [0; 32]);
    assert!(identity.quote(&[]).is_err() && identity.quote(&[0; 65]).is_err());

    let at = |name: &str| machine.dir.path().join(name).display().to_string();
    std::fs::write(at("attest"), &quote.attest).unwrap();
    std::fs::write(at("signature"), &quote.signature_der).unwrap();
    let pem = holdfast_format::keys::public_pem(&key).unwrap();
    std::fs::write(at("key.pem"), pem).unwrap();
    // A plain DER signature and no PCR file: the tool checks signature, magic, type and nonce.
    tool(
        &machine,
        "tpm2_checkquote",
        &["-u", &at("key.pem"), "-m", &at("attest"), "-s", &at("signature"), "-g", "sha256", "-q", &hex::encode(nonce)],
    );
}

#[test]
fn certificates_chain_to_the_device_key_as_openssl_sees_it() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let identity = machine.open();
    let made = Certificates::issue(&identity, SystemTime::now()).unwrap();
    let at = |name: &str| machine.dir.path().join(name).display().to_string();
    std::fs::write(at("device.pem"), &made.device).unwrap();
    let others = [
        ("ecdh", &made.agreement),
        ("quote", made.quote.as_ref().unwrap()),
        ("ek", made.endorsement.as_ref().unwrap()),
    ];
    for (name, pem) in others {
        std::fs::write(at(name), pem).unwrap();
        assert!(pem_to_der(pem).is_some());
        match Command::new("openssl").args(["verify", "-CAfile", &at("device.pem"), &at(name)]).output() {
            Ok(out) => {
                let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
                assert!(out.status.success(), "{name}: {text}");
            }
            Err(e) => println!("NOT CHECKED with openssl: {e}"),
        }
    }
}

#[test]
fn the_makers_endorsement_certificates_are_found_wherever_they_are() {
    let Some(machine) = Machine::manufactured(&["--create-ek-cert"]) else {
        return;
    };
    let found = machine.open().tpm().endorsement_certificates().unwrap();
    // This emulator's: RSA-2048 and ECC P-384.
    assert!(
        found.iter().any(|(index, _)| *index == 0x01C0_0002),
        "{:x?}",
        found.iter().map(|f| f.0).collect::<Vec<_>>()
    );
    for (index, der) in found {
        x509_parser::parse_x509_certificate(&der).unwrap_or_else(|e| panic!("{index:#010x}: {e}"));
    }
}

#[test]
fn the_vault_key_opens_once_per_boot_and_for_every_signed_image() {
    let Some(mut machine) = Machine::new() else {
        return;
    };
    let key = VaultKey::random().unwrap();
    let identity = machine.boot(&Image::new("kernel A", 1));
    assert_eq!(identity.strength().vault_key, KeyProtection::SealedWithEpoch, "{}", identity.strength());
    let sealed = identity.seal(&key).unwrap();
    assert!(matches!(sealed, SealedKey::Tpm { epoch_bound: true, .. }));
    assert_eq!(identity.unseal(&sealed).unwrap().expose(), key.expose());
    identity.extend_phase(phase::VAULT_OPEN).unwrap();
    let refused = identity.unseal(&sealed).unwrap_err().to_string();
    assert!(refused.contains("vault-open of this boot is already past: PCR 11: expected"), "{refused}");

    let identity = machine.boot(&Image::new("kernel B, never seen before", 1));
    assert_eq!(identity.unseal(&sealed).unwrap().expose(), key.expose());

    // Not what the release signed: A's signatures over another kernel.
    let mut forged = Image::new("kernel C", 1);
    forged.policies = Image::new("kernel A", 1).policies;
    let identity = machine.boot(&forged);
    assert!(matches!(
        identity.unseal(&sealed),
        Err(IdentityError::Tpm(TpmError::StaysSealed { condition: Condition::Boot, .. }))
    ));
}

#[test]
fn an_older_epoch_is_refused_after_the_newer_one_was_committed_and_not_before() {
    let Some(mut machine) = Machine::new() else {
        return;
    };
    let (old, new) = (Image::new("kernel old", 1), Image::new("kernel new", 2));
    let key = VaultKey::random().unwrap();
    let identity = machine.boot(&old);
    identity.commit_epoch(1).unwrap();
    let sealed = identity.seal(&key).unwrap();
    assert!(machine.boot(&new).unseal(&sealed).is_ok());
    let identity = machine.boot(&old);
    assert!(identity.unseal(&sealed).is_ok(), "an uncommitted newer image can still fall back");

    let identity = machine.boot(&new);
    identity.commit_epoch(2).unwrap();
    identity.commit_epoch(2).unwrap();
    assert_eq!(identity.tpm().read_epochs(EPOCH_INDEX).unwrap(), Some(0b110));
    assert!(identity.unseal(&sealed).is_ok());
    let refused = machine.boot(&old).unseal(&sealed).unwrap_err().to_string();
    assert!(refused.contains("security epoch 1") && refused.contains("higher one is committed"), "{refused}");
}

#[test]
fn abrupt_power_cuts_never_lock_the_device_out() {
    let Some(mut machine) = Machine::new() else {
        return;
    };
    let image = Image::new("kernel A", 1);
    let identity = machine.boot(&image);
    let key = VaultKey::random().unwrap();
    let sealed = identity.seal(&key).unwrap();
    drop(identity);
    for _cut in 0..4 {
        // Each cut follows use, and failures on top: neither may count as an attack.
        let identity = machine.boot(&image);
        assert_eq!(identity.unseal(&sealed).unwrap().expose(), key.expose());
        identity.extend_phase(phase::VAULT_OPEN).unwrap();
        assert!(identity.unseal(&sealed).is_err());
        identity.sign_sha256(&[1; 32]).unwrap();
    }
}

#[test]
fn an_unmeasured_boot_seals_nothing_and_says_so() {
    let Some(machine) = Machine::new() else {
        return;
    };
    Image::new("kernel A", 1).install(&machine.boot_dir());
    let identity = machine.open();
    let strength = identity.strength();
    assert_eq!(strength.vault_key, KeyProtection::Clear);
    assert!(strength.weaknesses[0].contains("PCR 0, 4, 7, 11 is zero"), "{strength}");
    assert!(matches!(identity.seal(&VaultKey::random().unwrap()).unwrap(), SealedKey::Clear(_)));
}

#[test]
fn a_key_that_this_boot_could_not_open_again_is_not_sealed() {
    let Some(mut machine) = Machine::new() else {
        return;
    };
    let mut image = Image::new("kernel A", 1);
    image.policies = Image::new("another kernel", 1).policies;
    let identity = machine.boot(&image);
    assert!(matches!(identity.seal(&VaultKey::random().unwrap()).unwrap(), SealedKey::Clear(_)));
    let strength = identity.strength();
    assert_eq!(strength.vault_key, KeyProtection::Clear);
    assert!(strength.weaknesses[0].contains("PCR 11: expected"), "{strength}");
}

#[test]
fn after_vault_open_nothing_is_sealed_weaker_instead() {
    let Some(mut machine) = Machine::new() else { return };
    let identity = machine.boot(&Image::new("kernel A", 1));
    identity.extend_phase(phase::VAULT_OPEN).unwrap();
    let refused = identity.seal(&VaultKey::random().unwrap()).unwrap_err().to_string();
    assert!(refused.contains("vault-open"), "{refused}");
}

#[test]
fn a_handle_that_holds_somebody_elses_key_is_left_alone_and_named() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let at = machine.dir.path().join("other.ctx").display().to_string();
    if tool(&machine, "tpm2_createprimary", &["-Q", "-C", "o", "-G", "rsa2048", "-c", &at]).is_none() {
        return;
    }
    tool(&machine, "tpm2_evictcontrol", &["-Q", "-C", "o", "-c", &at, "0x81000005"]);
    tool(&machine, "tpm2_flushcontext", &["-t"]);
    let Err(error) = HardwareIdentity::open(&machine.tcti(), &machine.boot_dir()) else { panic!("accepted") };
    assert!(error.to_string().contains("0x81000005"), "{error}");
}

#[test]
fn a_tpm_that_is_not_there_is_an_error_within_its_deadline() {
    let port = free_port_pair();
    let start = Instant::now();
    let tcti = format!("swtpm:host=127.0.0.1,port={port}");
    let Err(error) = HardwareIdentity::open(&tcti, Path::new("/nonexistent")) else { panic!("found a TPM") };
    assert!(error.to_string().contains(&tcti), "{error}");
    assert!(start.elapsed() < Duration::from_secs(20));
}
