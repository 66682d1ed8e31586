//! The SITE partition: what a machine must know before it knows anything, written when it is flashed.
//!
//! ```text
//!   0   8   "HFSITE01"
//!   8   4   length of the document, u32 little-endian, at most 1 MiB
//!  12   4   zero
//!  16  32   SHA-256 of the document
//!  48   n   the document: JSON, [`Site`]
//! ```
//! PID 1 measures exactly the document's bytes into PCR 14 ([`crate::pcr::predict_site`]), then `node` uses it. A
//! partition of zeros is "no site": the device boots and says that it has no controller.

use crate::io::{ReadAt, le32};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io;
use std::net::{IpAddr, Ipv4Addr};

const MAGIC: &[u8; 8] = b"HFSITE01";
const HEADER: usize = 48;
/// Largest document in bytes.
pub const MAX_DOCUMENT: usize = 1 << 20;
const MAX_HOSTS: usize = 64;

/// What the SITE partition says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// Controller as `host:port`.
    pub server: String,
    /// Address to use for the controller's host instead of asking DNS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_address: Option<IpAddr>,
    /// Root certificates of the controller, PEM, one or more.
    pub root_certs_pem: String,
    /// Onboarding certificate, PEM.
    pub onboard_cert_pem: String,
    /// Its private key, PEM.
    pub onboard_key_pem: String,
    /// Serial number to report instead of the one in the firmware's tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Soft serial: names this installation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft_serial: Option<String>,
    /// Names resolved before DNS is asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Host>,
    /// Network until the first configuration arrives.
    #[serde(default)]
    pub network: FirstNetwork,
}

/// One line of the hosts file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Host name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
}

/// How to reach the controller the first time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FirstNetwork {
    /// Port to use; none means every Ethernet port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Addressing.
    #[serde(default)]
    pub addressing: Addressing,
}

/// Addressing of the first network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Addressing {
    /// DHCP.
    #[default]
    Dhcp,
    /// Fixed.
    Static {
        /// Own address.
        address: Ipv4Addr,
        /// Prefix length, 1 to 32.
        prefix_len: u8,
        /// Default gateway.
        gateway: Option<Ipv4Addr>,
        /// Name servers.
        #[serde(default)]
        dns: Vec<IpAddr>,
    },
}

/// What is wrong with a SITE partition.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// Reading failed.
    #[error("cannot read SITE: {0}")]
    Read(#[from] io::Error),
    /// Neither zeros nor a site document.
    #[error("SITE: no site document: bytes {found}, expected \"HFSITE01\"; flash the machine again")]
    Magic {
        /// The first bytes, hexadecimal.
        found: String,
    },
    /// The length field.
    #[error("SITE: document of {found} bytes, expected 1 to {MAX_DOCUMENT}")]
    Length {
        /// Its value.
        found: usize,
    },
    /// The document is damaged.
    #[error("SITE: SHA-256 of the document is {found}, expected {expected}: the partition is damaged or was altered")]
    Digest {
        /// Computed.
        found: String,
        /// Stored.
        expected: String,
    },
    /// The document is not what it should be.
    #[error("SITE document: {0}")]
    Json(#[from] serde_json::Error),
    /// A field is out of range.
    #[error("SITE document: {field} is {found:?}, expected {expected}")]
    Field {
        /// Field name.
        field: &'static str,
        /// Its value, cut.
        found: String,
        /// What would do.
        expected: &'static str,
    },
}

/// A site document as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The parsed document.
    pub site: Site,
    /// Its exact bytes: what is measured.
    pub document: Vec<u8>,
}

impl Site {
    /// Host and port of [`Site::server`].
    ///
    /// # Errors
    /// [`SiteError::Field`] when it is not `host:port`.
    pub fn host_port(&self) -> Result<(&str, u16), SiteError> {
        let split = self.server.rsplit_once(':').and_then(|(h, p)| Some((h, p.parse::<u16>().ok()?)));
        split.filter(|(h, p)| !h.is_empty() && *p != 0).ok_or_else(|| SiteError::Field {
            field: "server",
            found: cut(&self.server),
            expected: "HOST:PORT",
        })
    }

    /// The bytes to write to the start of the partition.
    ///
    /// # Errors
    /// A field out of range, or a document above 1 MiB.
    pub fn encode(&self) -> Result<Vec<u8>, SiteError> {
        self.check()?;
        let document = serde_json::to_vec(self)?;
        if document.len() > MAX_DOCUMENT {
            return Err(SiteError::Length { found: document.len() });
        }
        let mut out = Vec::with_capacity(HEADER + document.len());
        out.extend(MAGIC);
        out.extend((document.len() as u32).to_le_bytes());
        out.extend([0; 4]);
        out.extend(Sha256::digest(&document));
        out.extend(document);
        Ok(out)
    }

    fn check(&self) -> Result<(), SiteError> {
        self.host_port()?;
        let bad = |field, found: &str, expected| Err(SiteError::Field { field, found: cut(found), expected });
        if self.hosts.len() > MAX_HOSTS {
            return bad("hosts", &self.hosts.len().to_string(), "at most 64 entries");
        }
        let name_ok = |n: &str| {
            !n.is_empty() && n.len() <= 253 && n.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        };
        for h in &self.hosts {
            if !name_ok(&h.name) {
                return bad("hosts", &h.name, "a host name");
            }
        }
        for (field, value) in [("serial", &self.serial), ("soft_serial", &self.soft_serial)] {
            if let Some(v) =
                value.as_deref().filter(|v| v.is_empty() || v.len() > 128 || !v.bytes().all(|b| b.is_ascii_graphic()))
            {
                return bad(field, v, "1 to 128 printable characters without spaces");
            }
        }
        if let Some(i) = self.network.interface.as_deref().filter(|i| !name_ok(i) || i.len() > 15) {
            return bad("network.interface", i, "an interface name of at most 15 characters");
        }
        match &self.network.addressing {
            Addressing::Static { prefix_len, .. } if !(1..=32).contains(prefix_len) => {
                bad("network.addressing.prefix_len", &prefix_len.to_string(), "1 to 32")
            }
            Addressing::Static { dns, .. } if dns.len() > 8 => {
                bad("network.addressing.dns", &dns.len().to_string(), "at most 8")
            }
            _ => Ok(()),
        }
    }
}

/// Reads a SITE partition: `None` when nothing was ever written there.
///
/// # Errors
/// [`SiteError`].
pub fn read(partition: &(impl ReadAt + ?Sized)) -> Result<Option<Found>, SiteError> {
    let mut header = [0u8; HEADER];
    partition.read_exact_at(&mut header, 0)?;
    if header == [0; HEADER] {
        return Ok(None);
    }
    if &header[..8] != MAGIC {
        return Err(SiteError::Magic { found: hex::encode(&header[..8]) });
    }
    let length = le32(&header, 8).unwrap_or_default() as usize;
    if length == 0 || length > MAX_DOCUMENT {
        return Err(SiteError::Length { found: length });
    }
    let mut document = vec![0u8; length];
    partition.read_exact_at(&mut document, HEADER as u64)?;
    let digest = Sha256::digest(&document);
    if digest[..] != header[16..48] {
        return Err(SiteError::Digest { found: hex::encode(digest), expected: hex::encode(&header[16..48]) });
    }
    let site: Site = serde_json::from_slice(&document)?;
    site.check()?;
    Ok(Some(Found { site, document }))
}

fn cut(s: &str) -> String {
    s.chars().take(80).collect()
}

/// Fuzz entry: a SITE partition. The digest is made to match, so that the JSON is reached.
#[doc(hidden)]
pub fn fuzz_site(data: &[u8]) {
    let _ = read(data);
    let mut b = [MAGIC.as_slice(), &(data.len() as u32).to_le_bytes(), &[0; 4]].concat();
    b.extend(Sha256::digest(data));
    b.extend(data);
    let _ = read(&b);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn site() -> Site {
        Site {
            server: "controller.example:8443".into(),
            server_address: Some([10, 0, 2, 2].into()),
            root_certs_pem: "-----BEGIN CERTIFICATE-----".into(),
            onboard_cert_pem: "c".into(),
            onboard_key_pem: "k".into(),
            serial: Some("SN-1".into()),
            soft_serial: None,
            hosts: vec![Host { name: "registry.test".into(), address: [10, 0, 2, 2].into() }],
            network: FirstNetwork {
                interface: Some("eth0".into()),
                addressing: Addressing::Static {
                    address: [10, 0, 2, 15].into(),
                    prefix_len: 24,
                    gateway: Some([10, 0, 2, 2].into()),
                    dns: vec![],
                },
            },
        }
    }

    #[test]
    fn a_site_round_trips_and_gives_the_bytes_that_are_measured() {
        let mut part = site().encode().unwrap();
        let document = part[48..].to_vec();
        part.resize(1 << 20, 0);
        let found = read(&part).unwrap().unwrap();
        assert_eq!(found.site, site());
        assert_eq!(found.document, document);
        assert_eq!(site().host_port().unwrap(), ("controller.example", 8443));
    }

    #[test]
    fn an_empty_partition_is_no_site_and_a_foreign_one_an_error() {
        assert_eq!(read(&vec![0u8; 4096]).unwrap(), None);
        assert!(matches!(read(&vec![1u8; 4096]), Err(SiteError::Magic { .. })));
    }

    #[test]
    fn bad_fields_are_named() {
        type Spoil = fn(&mut Site);
        let cases: [(&str, Spoil); 4] = [
            ("server", |s| s.server = "controller".into()),
            ("serial", |s| s.serial = Some("a b".into())),
            ("hosts", |s| s.hosts[0].name = "x\n1.2.3.4 evil".into()),
            ("network.interface", |s| s.network.interface = Some("a-name-that-is-too-long".into())),
        ];
        for (field, spoil) in cases {
            let mut s = site();
            spoil(&mut s);
            let e = s.encode().unwrap_err().to_string();
            assert!(e.contains(field), "{e}");
        }
    }

    #[test]
    fn the_shortest_document_needs_only_server_and_certificates() {
        let json = br#"{"server":"c:1","root_certs_pem":"","onboard_cert_pem":"","onboard_key_pem":""}"#;
        let s: Site = serde_json::from_slice(json).unwrap();
        assert_eq!(s.network.addressing, Addressing::Dhcp);
        fuzz_site(json);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn any_changed_byte_is_refused(at in 0usize..400, flip in 1u8..) {
            let mut b = site().encode().unwrap();
            let at = at % b.len();
            b[at] ^= flip;
            // Bytes 12 to 15 are reserved and not covered.
            prop_assert!((12..16).contains(&at) || read(&b).is_err(), "byte {}", at);
        }
    }
}
