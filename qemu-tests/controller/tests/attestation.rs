//! Attestation as a device sees it: with attestation data made by hand, and with a real (software) TPM as the oracle
//! for the form of a quote.

mod device;

use device::*;
use holdfast_test_controller::attest::{Policy, Template};
use holdfast_test_controller::config::{App, Datastore, DatastoreKind, DeviceConfig, Image, NetworkInstance};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command};

const SUCCESS: u64 = 1;
const NONCE_MISMATCH: u64 = 2;
const NO_CERT_FOUND: u64 = 3;
const QUOTE_FAILED: u64 = 4;

/// Values of PCR 0 to 15.
fn pcrs() -> Vec<[u8; 32]> {
    (0..16).map(|index| [index; 32]).collect()
}

/// A TPMS_ATTEST with empty signer and clock.
fn attest_data(nonce: &[u8], pcrs: &[[u8; 32]]) -> Vec<u8> {
    let mut out = b"\xffTCG\x80\x18\0\0\0".to_vec();
    out.push(nonce.len() as u8);
    out.extend(nonce);
    out.extend([0; 25]);
    out.extend(b"\0\0\0\x01\0\x0b\x03\xff\xff\x00\0\x20");
    out.extend(sha256(&pcrs.concat()));
    out
}

fn quote(attest_data: &[u8], signature: &[u8], pcrs: &[[u8; 32]]) -> Vec<u8> {
    let mut out = [bytes(1, attest_data), bytes(2, signature)].concat();
    for (index, value) in pcrs.iter().enumerate() {
        out.extend(bytes(3, [num(1, index as u64), num(2, 2), bytes(3, value)].concat()));
    }
    out.extend(bytes(5, [num(1, 1), bytes(2, "9.9")].concat()));
    [num(1, 3), bytes(2, out)].concat()
}

struct Tpm<'a> {
    device: Device<'a>,
    quote_keys: Keys,
}

impl<'a> Tpm<'a> {
    /// A device that has sent its certificates.
    fn new(site: &'a Site) -> Self {
        let device = site.join("S1");
        let quote_keys = Keys::signed_by(site.dir.path(), "quote", &device.keys);
        let ecdh = Keys::signed_by(site.dir.path(), "ecdh", &device.keys);
        let request = [num(1, 1), bytes(3, device.zcert(11, &quote_keys)), bytes(3, device.zcert(13, &ecdh))].concat();
        assert_eq!(get_num(&device.attest(&request), 1), 1);
        Self { device, quote_keys }
    }

    fn nonce(&self) -> Vec<u8> {
        let nonce = get(&get(&self.device.attest(&num(1, 2)), 2), 1);
        assert!((12..=32).contains(&nonce.len()));
        nonce
    }

    /// Response code, token, keys.
    fn quote(&self, request: &[u8]) -> (u64, Vec<u8>, Vec<u8>) {
        let response = self.device.attest(request);
        assert_eq!(get_num(&response, 1), 3);
        let response = get(&response, 3);
        (get_num(&response, 1), get(&response, 2), get(&response, 3))
    }

    fn good_quote(&self) -> (u64, Vec<u8>, Vec<u8>) {
        let data = attest_data(&self.nonce(), &pcrs());
        self.quote(&quote(&data, &self.quote_keys.sign_der(&data), &pcrs()))
    }
}

#[test]
fn a_good_quote_gets_a_token_and_the_escrowed_keys_back() {
    let site = Site::start();
    let tpm = Tpm::new(&site);
    let (code, token, keys) = tpm.good_quote();
    assert_eq!((code, keys.len()), (SUCCESS, 0));
    let store = |token: &[u8]| {
        let key = [num(1, 1), bytes(2, b"sealed")].concat();
        let response = tpm.device.attest(&[num(1, 4), bytes(4, [bytes(1, token), bytes(2, key)].concat())].concat());
        get_num(&get(&response, 4), 1)
    };
    assert_eq!(store(b"wrong"), 2, "ITOKEN_MISMATCH");
    assert_eq!(store(&token), 1, "SUCCESS");
    let (code, newer, keys) = tpm.good_quote();
    assert_eq!((code, get(&keys, 2)), (SUCCESS, b"sealed".to_vec()));
    assert_ne!(newer, token);
    assert_eq!(tpm.device.config("", &token).status, 403, "the older token is void");
    assert_eq!(tpm.device.config("", &newer).status, 404, "attested, but nothing is configured");
    let status = site.controller.status(tpm.device.uuid).expect("status");
    let report = status.attestation.expect("report");
    assert!(report.accepted && report.pcrs.len() == 16 && report.versions["eve"] == "9.9");
}

#[test]
fn every_false_quote_is_refused_and_takes_the_token_away() {
    let site = Site::start();
    let tpm = Tpm::new(&site);
    let stranger = Keys::self_signed(site.dir.path(), "stranger");
    let sign = |data: &[u8]| tpm.quote_keys.sign_der(data);
    let (_, token, _) = tpm.good_quote();
    assert_eq!(tpm.device.config("", &token).status, 404);

    let used = tpm.nonce();
    let data = attest_data(&used, &pcrs());
    assert_eq!(tpm.quote(&quote(&data, &tpm.quote_keys.sign_raw(&data), &pcrs())).0, SUCCESS, "raw r and s");
    assert_eq!(tpm.quote(&quote(&data, &sign(&data), &pcrs())).0, NONCE_MISMATCH, "nonce used again");
    assert_eq!(tpm.device.config("", &token).status, 403, "a failed quote voids the token");

    let fresh = || attest_data(&tpm.nonce(), &pcrs());
    let data = fresh();
    assert_eq!(tpm.quote(&quote(&data, &stranger.sign_der(&data), &pcrs())).0, QUOTE_FAILED, "key");
    let data = attest_data(b"not-a-nonce!", &pcrs());
    tpm.nonce();
    assert_eq!(tpm.quote(&quote(&data, &sign(&data), &pcrs())).0, NONCE_MISMATCH, "other nonce");
    let data = fresh();
    let mut other = pcrs();
    other[11] = [0xaa; 32];
    assert_eq!(tpm.quote(&quote(&data, &sign(&data), &other)).0, QUOTE_FAILED, "values");
    let data = fresh();
    assert_eq!(tpm.quote(&quote(&data, &sign(&data), &pcrs()[..15])).0, QUOTE_FAILED, "a value missing");
    let mut data = fresh();
    data[0] = 0;
    assert_eq!(tpm.quote(&quote(&data, &sign(&data), &pcrs())).0, QUOTE_FAILED, "magic");
    let mut data = fresh();
    data[5] = 0x17;
    assert_eq!(tpm.quote(&quote(&data, &sign(&data), &pcrs())).0, QUOTE_FAILED, "type");
    assert_eq!(tpm.quote(&[num(1, 3), bytes(2, b"")].concat()).0, QUOTE_FAILED, "the form without a TPM");
}

#[test]
fn certificates_must_be_the_devices_own() {
    let site = Site::start();
    let device = site.join("S1");
    let stranger = Keys::self_signed(site.dir.path(), "stranger");
    let send = |cert: Vec<u8>| device.status("attest", &[num(1, 1), bytes(3, cert)].concat());
    assert_eq!(send(device.zcert(11, &stranger)), 400, "not signed by the device key");
    assert_eq!(send(device.zcert(1, &stranger)), 400, "type of a controller");
    assert_eq!(send([num(1, 1), bytes(2, [0; 16]), num(3, 13), bytes(4, stranger.cert_pem())].concat()), 400, "hash");
    assert_eq!(send(device.zcert(12, &stranger)), 201, "an endorsement certificate has another issuer");
    let data = attest_data(b"whatever nonce", &pcrs());
    let response = device.attest(&quote(&data, &stranger.sign_der(&data), &pcrs()));
    assert_eq!(get_num(&get(&response, 3), 1), NO_CERT_FOUND);
}

#[test]
fn the_policy_names_the_pcr_that_differs() {
    let site = Site::start();
    let tpm = Tpm::new(&site);
    let template = |pcr11: String| Policy {
        enforce: true,
        templates: vec![Template {
            eve_version: "9.9".into(),
            pcrs: BTreeMap::from([(7, "*".into()), (11, pcr11)]),
            ..Template::default()
        }],
        ..Policy::default()
    };
    site.controller.set_policy(template("0b".repeat(32))).expect("policy");
    assert_eq!(tpm.good_quote().0, SUCCESS);
    site.controller.set_policy(template("ff".repeat(32))).expect("policy");
    assert_eq!(tpm.good_quote().0, QUOTE_FAILED);
    let reason = site.controller.status(tpm.device.uuid).expect("status").attestation.expect("report").reason;
    assert!(reason.contains("PCR 11: expected ffff"), "{reason}");
    site.controller.set_policy(Policy { event_log_must_lead_to: vec![0], ..Policy::default() }).expect("policy");
    assert_eq!(tpm.good_quote().0, QUOTE_FAILED, "no event log");
}

#[test]
fn encrypted_user_data_is_served_once_the_devices_certificate_is_known_and_only_it_can_read_it() {
    let site = Site::start();
    let device = site.join("S1");
    let mut app = App::container("web", "image", "local", &[]);
    app.env.insert("SECRET".into(), "s3cret".into());
    app.encrypt = true;
    let config = DeviceConfig {
        datastores: vec![Datastore::new("store", DatastoreKind::Registry, "localhost", &[])],
        images: vec![Image::container("image", "store", "web:1")],
        network_instances: vec![NetworkInstance::local("local", "eth0", "10.1.0.0/24")],
        apps: vec![app],
        ..DeviceConfig::quick()
    };
    site.controller.set_config(device.uuid, config).expect("accepted, to be served later");
    assert_eq!(site.controller.served_config(device.uuid).expect("known"), None);
    let ecdh = Keys::signed_by(site.dir.path(), "ecdh", &device.keys);
    device.attest(&[num(1, 1), bytes(3, device.zcert(13, &ecdh))].concat());
    let token = device.attest_without_tpm();
    let config = get(&site.open(&device.config("", &token)), 1);
    let context = get(&config, 19);
    assert_eq!((get_num(&context, 2), get_num(&context, 3), get_num(&context, 4)), (1, 1, 1));
    assert_eq!(get(&context, 5), sha256(&ecdh.cert_pem())[..16]);
    let block = get(&get(&config, 4), 13);
    assert_eq!(get(&block, 1), get(&context, 1));
    assert!(get(&get(&config, 4), 11).is_empty(), "nothing in clear");

    let controller_cert = controller_cert_with_hash(&site, &get(&context, 6));
    let key = shared_key(&ecdh.path("key"), &controller_cert);
    let iv = get(&block, 2);
    let clear =
        openssl(&["enc", "-d", "-aes-256-cfb", "-K", &hex::encode(key), "-iv", &hex::encode(iv)], &get(&block, 3));
    assert_eq!(sha256(&clear), get(&block, 4));
    assert_eq!(openssl(&["base64", "-d", "-A"], &get(&clear, 5)), b"SECRET=s3cret\n");
}

fn controller_cert_with_hash(site: &Site, hash: &[u8]) -> Vec<u8> {
    let list = get(&get(&site.ask("certs", b"").expect("certs").body, 1), 1);
    fields(&list)
        .into_iter()
        .find_map(|(_, value)| match value {
            Value::Bytes(cert) if get(&cert, 2) == hash => Some(get(&cert, 4)),
            _ => None,
        })
        .expect("the context names a certificate of /certs")
}

/// SHA-256 over both coordinates, with the curve arithmetic of the p256 crate and a key read by openssl.
fn shared_key(private_key: &str, cert_pem: &[u8]) -> Vec<u8> {
    use p256::elliptic_curve::sec1::ToEncodedPoint;
    let der = openssl(&["ec", "-in", private_key, "-outform", "DER"], b"");
    // ECPrivateKey: SEQUENCE, version 1, OCTET STRING of 32 bytes.
    let at = der.windows(2).position(|w| w == [4, 32]).expect("private key") + 2;
    let scalar = p256::NonZeroScalar::try_from(&der[at..at + 32]).expect("scalar");
    let public = openssl(&["x509", "-pubkey", "-noout"], cert_pem);
    let der = openssl(&["ec", "-pubin", "-outform", "DER"], &public);
    let point = p256::PublicKey::from_sec1_bytes(&der[der.len() - 65..]).expect("point");
    let shared = (point.to_projective() * *scalar).to_affine().to_encoded_point(false);
    sha256(&shared.as_bytes()[1..])
}

/// A software TPM that ends with the test.
struct Swtpm {
    child: Child,
    tcti: String,
}

impl Swtpm {
    fn start(dir: &Path) -> Self {
        let socket = dir.join("tpm.sock");
        let control = dir.join("tpm.sock.ctrl");
        let state = dir.join("tpm");
        std::fs::create_dir_all(&state).expect("mkdir");
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "startup-clear"])
            .arg("--tpmstate")
            .arg(format!("dir={}", state.display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", socket.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", control.display()))
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("this test needs the swtpm program (package swtpm)");
        let start = std::time::Instant::now();
        while !socket.exists() && start.elapsed() < WAIT {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Self { child, tcti: format!("swtpm:path={}", socket.display()) }
    }

    fn tool(&self, dir: &Path, command: &str) {
        let mut words = command.split(' ');
        let program = words.next().expect("program");
        let out = Command::new(program)
            .args(words)
            .env("TPM2TOOLS_TCTI", &self.tcti)
            .current_dir(dir)
            .output()
            .expect("this test needs tpm2-tools");
        assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
        // Transient objects stay loaded over this TCTI, and there is room for three.
        if program != "tpm2_flushcontext" {
            self.tool(dir, "tpm2_flushcontext -t");
        }
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_quote_of_a_software_tpm_is_accepted() {
    let site = Site::start();
    let device = site.join("S1");
    let dir = site.dir.path();
    let swtpm = Swtpm::start(dir);
    let all = "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15";
    swtpm.tool(dir, &format!("tpm2_pcrextend 11:sha256={}", "5a".repeat(32)));
    swtpm.tool(
        dir,
        "tpm2_createprimary -C o -G ecc256:ecdsa-sha256:null -c ak.ctx \
         -a fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign",
    );
    swtpm.tool(dir, "tpm2_readpublic -c ak.ctx -f pem -o ak.pub.pem");
    // A certificate over the TPM's key, issued by the device key.
    let request = openssl(&["req", "-new", "-key", &device.keys.path("key"), "-subj", "/CN=quote"], b"");
    let (public, cert) = (dir.join("ak.pub.pem").display().to_string(), dir.join("ak.cert.pem").display().to_string());
    let (issuer, issuer_key) = (device.keys.path("cert"), device.keys.path("key"));
    openssl(
        &[
            "x509",
            "-req",
            "-force_pubkey",
            &public,
            "-CA",
            &issuer,
            "-CAkey",
            &issuer_key,
            "-days",
            "30",
            "-out",
            &cert,
        ],
        &request,
    );
    let ak = Keys::from_pem(dir, "ak", &std::fs::read_to_string(&cert).expect("cert"), "");
    device.attest(&[num(1, 1), bytes(3, device.zcert(11, &ak))].concat());

    let nonce = get(&get(&device.attest(&num(1, 2)), 2), 1);
    let quoting = format!("tpm2_quote -c ak.ctx -l sha256:{all} -q {} -m msg -s sig -f plain", hex::encode(nonce));
    swtpm.tool(dir, &quoting);
    swtpm.tool(dir, &format!("tpm2_pcrread sha256:{all} -o pcrs"));
    let read = |name: &str| std::fs::read(dir.join(name)).expect(name);
    let values: Vec<[u8; 32]> = read("pcrs").chunks(32).map(|c| c.try_into().expect("32 bytes")).collect();
    assert_eq!(values.len(), 16);
    let response = get(&device.attest(&quote(&read("msg"), &read("sig"), &values)), 3);
    let report = site.controller.status(device.uuid).expect("status").attestation.expect("report");
    assert_eq!(get_num(&response, 1), SUCCESS, "{}", report.reason);
    assert_eq!(report.pcrs[&11], hex::encode(values[11]));
}
