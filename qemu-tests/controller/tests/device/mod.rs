//! A device for tests, as little like the controller as possible: protobuf written by hand, cryptography by the
//! `openssl` program, HTTP as text over rustls.

#![allow(dead_code, reason = "each test file uses its own part")]

use holdfast_test_controller::{Controller, Options};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

pub const WAIT: Duration = Duration::from_secs(10);

/// Runs `openssl`, returns its standard output.
pub fn openssl(args: &[&str], input: &[u8]) -> Vec<u8> {
    let (ok, out, err) = try_openssl(args, input);
    assert!(ok, "openssl {args:?}: {err}");
    out
}

fn try_openssl(args: &[&str], input: &[u8]) -> (bool, Vec<u8>, String) {
    let mut child = Command::new("openssl")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("these tests need the openssl program (package openssl)");
    child.stdin.take().expect("piped").write_all(input).expect("openssl reads its input");
    let out = child.wait_with_output().expect("openssl ends");
    (out.status.success(), out.stdout, String::from_utf8_lossy(&out.stderr).into_owned())
}

pub fn sha256(data: &[u8]) -> Vec<u8> {
    openssl(&["dgst", "-sha256", "-binary"], data)
}

// ---- protobuf by hand -------------------------------------------------------------------------------------------

pub fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A field with a number.
pub fn num(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

/// A field with bytes, a text or a message.
pub fn bytes(field: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [varint(field << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

/// Numbers and byte strings of a message, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Num(u64),
    Bytes(Vec<u8>),
}

pub fn fields(mut data: &[u8]) -> Vec<(u64, Value)> {
    fn read(data: &mut &[u8]) -> u64 {
        let mut out = 0;
        for shift in (0..).step_by(7) {
            let byte = data[0];
            *data = &data[1..];
            out |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        out
    }
    let mut out = Vec::new();
    while !data.is_empty() {
        let key = read(&mut data);
        let value = match key & 7 {
            0 => Value::Num(read(&mut data)),
            2 => {
                let length = read(&mut data) as usize;
                let (value, rest) = data.split_at(length);
                data = rest;
                Value::Bytes(value.to_vec())
            }
            other => panic!("wire type {other} is not used here"),
        };
        out.push((key >> 3, value));
    }
    out
}

pub fn get(data: &[u8], field: u64) -> Vec<u8> {
    fields(data)
        .into_iter()
        .find_map(|(number, value)| match value {
            Value::Bytes(bytes) if number == field => Some(bytes),
            _ => None,
        })
        .unwrap_or_default()
}

pub fn get_num(data: &[u8], field: u64) -> u64 {
    fields(data)
        .into_iter()
        .find_map(|(number, value)| match value {
            Value::Num(value) if number == field => Some(value),
            _ => None,
        })
        .unwrap_or_default()
}

// ---- keys and envelopes -----------------------------------------------------------------------------------------

/// A P-256 key with a certificate, as files that openssl reads.
pub struct Keys {
    dir: PathBuf,
    name: String,
}

impl Keys {
    pub fn path(&self, what: &str) -> String {
        self.dir.join(format!("{}.{what}.pem", self.name)).display().to_string()
    }

    pub fn self_signed(dir: &Path, name: &str) -> Self {
        let keys = Self { dir: dir.to_owned(), name: name.to_owned() };
        let (key, cert) = (keys.path("key"), keys.path("cert"));
        openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &key], b"");
        let subject = format!("/CN={name}");
        openssl(&["req", "-new", "-x509", "-key", &key, "-subj", &subject, "-days", "30", "-out", &cert], b"");
        keys
    }

    pub fn signed_by(dir: &Path, name: &str, issuer: &Keys) -> Self {
        let keys = Self { dir: dir.to_owned(), name: name.to_owned() };
        let (key, cert) = (keys.path("key"), keys.path("cert"));
        openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &key], b"");
        let subject = format!("/CN={name}");
        let request = openssl(&["req", "-new", "-key", &key, "-subj", &subject], b"");
        openssl(
            &["x509", "-req", "-CA", &issuer.path("cert"), "-CAkey", &issuer.path("key"), "-days", "30", "-out", &cert],
            &request,
        );
        keys
    }

    /// Keys that exist already.
    pub fn from_pem(dir: &Path, name: &str, cert: &str, key: &str) -> Self {
        let keys = Self { dir: dir.to_owned(), name: name.to_owned() };
        std::fs::write(keys.path("key"), key).expect("write");
        std::fs::write(keys.path("cert"), cert).expect("write");
        keys
    }

    pub fn cert_pem(&self) -> Vec<u8> {
        std::fs::read(self.path("cert")).expect("certificate")
    }

    pub fn der_hash(&self) -> Vec<u8> {
        sha256(&openssl(&["x509", "-in", &self.path("cert"), "-outform", "DER"], b""))
    }

    /// ASN.1 signature.
    pub fn sign_der(&self, data: &[u8]) -> Vec<u8> {
        openssl(&["dgst", "-sha256", "-sign", &self.path("key")], data)
    }

    /// r and s, 32 bytes each.
    pub fn sign_raw(&self, data: &[u8]) -> Vec<u8> {
        let der = self.sign_der(data);
        let mut out = Vec::new();
        let mut rest = &der[2..];
        for _ in 0..2 {
            let length = rest[1] as usize;
            let number = &rest[2..2 + length];
            let number = number.strip_prefix(&[0]).unwrap_or(number);
            out.extend(vec![0; 32 - number.len()]);
            out.extend(number);
            rest = &rest[2 + length..];
        }
        out
    }

    /// The envelope of the wire.
    pub fn envelope(&self, payload: &[u8]) -> Vec<u8> {
        [bytes(1, bytes(1, payload)), num(2, 2), bytes(3, self.der_hash()), bytes(4, self.sign_raw(payload))].concat()
    }
}

/// Opens an answer: the sender must be `cert_pem`, and openssl must find the signature good.
pub fn open_answer(dir: &Path, answer: &[u8], cert_pem: &str) -> Result<Vec<u8>, String> {
    let payload = get(&get(answer, 1), 1);
    assert_eq!(get_num(answer, 2), 2, "algo");
    if get(answer, 3) != sha256(cert_pem.trim().as_bytes()) {
        return Err("sender hash".into());
    }
    let raw = get(answer, 4);
    assert_eq!(raw.len(), 64);
    let integer = |bytes: &[u8]| {
        let first = bytes.iter().position(|b| *b != 0).unwrap_or(31);
        let mut number = bytes[first..].to_vec();
        if number[0] >= 0x80 {
            number.insert(0, 0);
        }
        [vec![2, number.len() as u8], number].concat()
    };
    let both = [integer(&raw[..32]), integer(&raw[32..])].concat();
    let der = [vec![0x30, both.len() as u8], both].concat();
    let (signature, key) = (dir.join("answer.sig"), dir.join("answer.key"));
    std::fs::write(&signature, der).expect("write");
    let public = openssl(&["x509", "-pubkey", "-noout"], cert_pem.as_bytes());
    std::fs::write(&key, public).expect("write");
    let (ok, _, _) = try_openssl(
        &["dgst", "-sha256", "-verify", &key.display().to_string(), "-signature", &signature.display().to_string()],
        &payload,
    );
    if ok { Ok(payload) } else { Err("signature".into()) }
}

// ---- HTTP -------------------------------------------------------------------------------------------------------

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// One request on its own connection; an error if the answer is not whole.
pub fn https(
    addr: SocketAddr,
    root_pem: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Answer> {
    use rustls_pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::CertificateDer::from_pem_slice(root_pem.as_bytes()).expect("root")).expect("root");
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "localhost".try_into().expect("name");
    let tls = rustls::ClientConnection::new(Arc::new(config), name).expect("client");
    let socket = TcpStream::connect(addr)?;
    socket.set_read_timeout(Some(WAIT))?;
    let mut stream = rustls::StreamOwned::new(tls, socket);
    let mut head =
        format!("{method} {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    stream.flush()?;
    let mut out = Vec::new();
    stream.read_to_end(&mut out)?;
    let end = out.windows(4).position(|w| w == b"\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let head = String::from_utf8_lossy(&out[..end]).into_owned();
    let answer = Answer {
        status: head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?,
        body: out[end + 4..].to_vec(),
        head,
    };
    let announced: usize = answer.header("content-length").and_then(|l| l.parse().ok()).unwrap_or(answer.body.len());
    if method != "HEAD" && announced != answer.body.len() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer)
}

// ---- a device at a controller -----------------------------------------------------------------------------------

pub struct Site {
    pub dir: tempfile::TempDir,
    pub controller: Controller,
    pub onboarding: Keys,
}

impl Site {
    pub fn start() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut options = Options::loopback(dir.path().join("controller"));
        change(&mut options);
        let controller = Controller::start(options).expect("controller");
        let (cert, key) = controller.onboarding_material();
        let onboarding = Keys::from_pem(dir.path(), "onboarding", &cert, &key);
        Self { dir, controller, onboarding }
    }

    /// POST (or GET for ping and certs) below /api/v2/edgedevice/.
    pub fn ask(&self, path: &str, body: &[u8]) -> std::io::Result<Answer> {
        let method = if path == "ping" || path == "certs" { "GET" } else { "POST" };
        https(
            self.controller.device_addr(),
            &self.controller.root_pem(),
            method,
            &format!("/api/v2/edgedevice/{path}"),
            &[("content-type", "application/x-proto-binary"), ("x-request-id", "test")],
            body,
        )
    }

    pub fn status(&self, path: &str, body: &[u8]) -> u16 {
        self.ask(path, body).expect("an answer").status
    }

    /// The signing certificate out of /certs, checked by itself.
    pub fn signing_cert(&self) -> String {
        let answer = self.ask("certs", b"").expect("certs");
        assert_eq!(answer.status, 200);
        let list = get(&get(&answer.body, 1), 1);
        let pem = fields(&list)
            .into_iter()
            .find_map(|(_, value)| match value {
                Value::Bytes(cert) if get_num(&cert, 3) == 1 => {
                    let pem = get(&cert, 4);
                    assert_eq!(get(&cert, 2), sha256(&pem)[..16]);
                    Some(String::from_utf8(pem).expect("text"))
                }
                _ => None,
            })
            .expect("a signing certificate");
        open_answer(self.dir.path(), &answer.body, &pem).expect("the list is signed by what is in it");
        pem
    }

    pub fn open(&self, answer: &Answer) -> Vec<u8> {
        open_answer(self.dir.path(), &answer.body, &self.signing_cert()).expect("a good envelope")
    }

    pub fn register_message(&self, device: &Keys, serial: &str) -> Vec<u8> {
        let cert = openssl(&["base64", "-A"], &device.cert_pem());
        [bytes(2, cert), bytes(3, serial)].concat()
    }

    pub fn register_envelope(&self, device: &Keys, serial: &str) -> Vec<u8> {
        let message = self.register_message(device, serial);
        let sender = openssl(&["base64", "-A"], &self.onboarding.cert_pem());
        [self.onboarding.envelope(&message), bytes(5, sender)].concat()
    }

    /// A device that has registered and knows its UUID.
    pub fn join(&self, name: &str) -> Device<'_> {
        let (cert, _) = self.controller.onboarding_material();
        self.controller.onboard(&cert, "*").expect("onboard");
        let keys = Keys::self_signed(self.dir.path(), name);
        assert_eq!(self.status("register", &self.register_envelope(&keys, name)), 201);
        let answer = self.ask("uuid", &keys.envelope(b"")).expect("uuid");
        assert_eq!(answer.status, 200);
        let uuid = String::from_utf8(get(&self.open(&answer), 1)).expect("text").parse().expect("uuid");
        Device { site: self, keys, uuid }
    }
}

pub struct Device<'a> {
    pub site: &'a Site,
    pub keys: Keys,
    pub uuid: uuid::Uuid,
}

impl Device<'_> {
    pub fn ask(&self, endpoint: &str, payload: &[u8]) -> std::io::Result<Answer> {
        self.site.ask(&format!("id/{}/{endpoint}", self.uuid), &self.keys.envelope(payload))
    }

    pub fn status(&self, endpoint: &str, payload: &[u8]) -> u16 {
        self.ask(endpoint, payload).expect("an answer").status
    }

    pub fn attest(&self, request: &[u8]) -> Vec<u8> {
        let answer = self.ask("attest", request).expect("an answer");
        assert_eq!(answer.status, 201, "{}", answer.head);
        self.site.open(&answer)
    }

    /// A ZCert of one of the device's own certificates.
    pub fn zcert(&self, kind: u64, cert: &Keys) -> Vec<u8> {
        let pem = cert.cert_pem();
        [num(1, 1), bytes(2, &sha256(&pem)[..16]), num(3, kind), bytes(4, pem)].concat()
    }

    /// The form of a device without a TPM: the token.
    pub fn attest_without_tpm(&self) -> Vec<u8> {
        let response = self.attest(&[num(1, 3), bytes(2, b"")].concat());
        let quote = get(&response, 3);
        assert_eq!(get_num(&quote, 1), 1, "SUCCESS");
        get(&quote, 2)
    }

    pub fn config(&self, hash: &str, token: &[u8]) -> Answer {
        self.ask("config", &[bytes(1, hash), bytes(2, token)].concat()).expect("an answer")
    }

    pub fn info_device(&self, state: u64) -> Vec<u8> {
        [num(1, 1), bytes(2, self.uuid.to_string()), bytes(3, num(44, state))].concat()
    }
}
