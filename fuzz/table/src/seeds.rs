//! Valid samples, made by the real encoders where there are any: mutations of something that is read to its end go deeper than
//! mutations of noise.

use flate2::{Compression, GzBuilder};
use holdfast_api::proto;
use holdfast_format::guid::Guid;
use holdfast_format::policy::SignedPolicies;
use holdfast_format::release::{Kind, Release};
use holdfast_format::site::Site;
use holdfast_format::{gpt, payload};
use holdfast_netsvc::dhcp::{Message, MessageType, packet};
use holdfast_netsvc::dns::message::encode_name;
use holdfast_slots::efivars::{HardDrive, LoadOption};
use holdfast_slots::store::tests_support::Memory;
use holdfast_slots::{Image, Record};
use holdfast_supervise::message::Request;
use holdfast_supervise::{UnitName, UnitSpec};
use p256::ecdsa::SigningKey;
use prost::Message as _;
use std::io::Write;
use std::net::Ipv4Addr;

/// Samples.
pub type Seeds = Vec<Vec<u8>>;

fn texts(list: &[&str]) -> Seeds {
    list.iter().map(|t| t.as_bytes().to_vec()).collect()
}

fn key() -> Option<SigningKey> {
    SigningKey::from_slice(&[9; 32]).ok()
}

/// A partition table's first copy, with what is before it.
#[must_use]
pub fn gpt() -> Seeds {
    let guid = |n| Guid([n; 16]);
    let part = |name: &str, n: u8, first_lba, last_lba| gpt::Partition {
        name: name.into(),
        type_guid: guid(n),
        guid: guid(n + 1),
        first_lba,
        last_lba,
        attributes: 0,
    };
    let table = gpt::Table {
        disk_guid: guid(1),
        disk_bytes: 4 << 20,
        partitions: vec![part("ESP-A", 2, 2048, 4095), part("DATA", 4, 4096, 6143)],
    };
    let Ok(copies) = table.encode() else {
        return vec![];
    };
    let Some(first) = copies.into_iter().min_by_key(|e| e.offset) else {
        return vec![];
    };
    let mut disk = vec![0; usize::try_from(first.offset).unwrap_or(0)];
    disk.extend(first.data);
    vec![disk]
}

/// A PE32+ file with one section.
#[must_use]
pub fn pe() -> Seeds {
    let mut b = vec![0u8; 0x600];
    b[..2].copy_from_slice(b"MZ");
    b[0x3c] = 0x80;
    b[0x80..0x84].copy_from_slice(b"PE\0\0");
    b[0x84..0x86].copy_from_slice(&0x8664u16.to_le_bytes());
    b[0x86] = 1;
    b[0x94] = 240;
    let optional = 0x98;
    b[optional..optional + 2].copy_from_slice(&0x20bu16.to_le_bytes());
    for (at, value) in [(32, 0x200u32), (36, 0x200), (56, 0x1400), (60, 0x400), (108, 16)] {
        b[optional + at..optional + at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let section = optional + 240;
    b[section..section + 5].copy_from_slice(b".text");
    for (at, value) in [(8, 0x10u32), (12, 0x1000), (16, 0x200), (20, 0x400)] {
        b[section + at..section + at + 4].copy_from_slice(&value.to_le_bytes());
    }
    vec![b]
}

fn release_document() -> Release {
    Release { product: "p".into(), version: "1.0".into(), epoch: 1, kind: Kind::Dev }
}

/// A release document.
#[must_use]
pub fn release() -> Seeds {
    vec![release_document().encode()]
}

/// An update payload, and the manifest alone.
#[must_use]
pub fn payload() -> Seeds {
    let mut out = Vec::new();
    let images = payload::Images { os: &[1; 4096], esp: &[2; 512] };
    match key().map(|key| payload::write(&mut out, &release_document(), images, &key)) {
        Some(Ok(manifest)) => {
            // The entry takes the first half as manifest and the second as chunks.
            let mut json = serde_json::to_vec(&manifest).unwrap_or_default();
            json.resize(json.len().max(out.len()), b' ');
            json.extend_from_within(..);
            vec![out, json]
        }
        _ => vec![],
    }
}

/// A SITE partition, and its document alone.
#[must_use]
pub fn site() -> Seeds {
    let document = r#"{"server":"c.example:443","server_address":"10.0.2.2","root_certs_pem":"-----BEGIN CERTIFICATE-----","onboard_cert_pem":"c",
        "onboard_key_pem":"k","serial":"SN","hosts":[{"name":"a.test","address":"10.0.0.1"}],
        "network":{"interface":"eth0","addressing":{"static":{"address":"10.0.0.2","prefix_len":24,"gateway":"10.0.0.1","dns":["10.0.0.1"]}}}}"#;
    let mut seeds = texts(&[document]);
    if let Ok(site) = serde_json::from_str::<Site>(document)
        && let Ok(bytes) = site.encode()
    {
        seeds.push(bytes);
    }
    seeds
}

/// A `.pcrsig` section.
#[must_use]
pub fn policy() -> Seeds {
    key().map(|key| SignedPolicies::sign(&[5; 32], 3, &key).encode()).into_iter().collect()
}

/// A command line as the UKI carries it.
#[must_use]
pub fn cmdline() -> Seeds {
    let text = format!("quiet slot.root={} slot.blocks=4096 slot.version=1.0 slot.epoch=1 panic=5", "ab".repeat(32));
    vec![text.into_bytes()]
}

/// A `Boot####` variable.
#[must_use]
pub fn load_option() -> Seeds {
    let drive = HardDrive { number: 1, start_lba: 2048, sectors: 262_144, guid: Guid([7; 16]) };
    let option = LoadOption { description: "Holdfast A".into(), drive, file: "\\EFI\\BOOT\\BOOTX64.EFI".into() };
    vec![option.encode()]
}

/// The head of a STATE partition, and its JSON alone.
#[must_use]
pub fn state() -> Seeds {
    let record = Record::initial(holdfast_model::slot::Slot::A, Image { version: "1.0".into(), epoch: 1 });
    let mut store = Memory::new(vec![0; 3 << 20]);
    let mut seeds = vec![serde_json::to_vec(&record).unwrap_or_default()];
    if record.save(&mut store).is_ok() {
        seeds.push(store.bytes[..2048].to_vec());
    }
    seeds
}

/// `WWW-Authenticate` values.
#[must_use]
pub fn challenge() -> Seeds {
    texts(&[
        r#"Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull""#,
        r#"Basic realm="x \" y""#,
    ])
}

/// A layer: a file, a folder, links and a whiteout.
#[must_use]
pub fn tar() -> Seeds {
    let mut builder = tar::Builder::new(Vec::new());
    let add = |builder: &mut tar::Builder<Vec<u8>>, kind, name: &str, link: &str, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        if !link.is_empty() {
            let _ = header.set_link_name(link);
        }
        let _ = builder.append_data(&mut header, name, data);
    };
    use tar::EntryType;
    add(&mut builder, EntryType::Directory, "etc/", "", b"");
    add(&mut builder, EntryType::Regular, "etc/passwd", "", b"root:x:0:0::/root:/bin/sh\n");
    add(&mut builder, EntryType::Symlink, "etc/link", "passwd", b"");
    add(&mut builder, EntryType::Link, "etc/hard", "etc/passwd", b"");
    add(&mut builder, EntryType::Regular, "etc/.wh.old", "", b"");
    add(&mut builder, EntryType::XHeader, "pax", "", b"21 path=etc/longname\n20 SCHILY.xattr.a=b\n");
    builder.into_inner().into_iter().collect()
}

/// Manifest, index and configuration.
#[must_use]
pub fn manifest() -> Seeds {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":9}},
        "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":99}}]}}"#
    );
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":9,"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#
    );
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Entrypoint":["/a"],"Cmd":["b"],"Env":["A=1"],"User":"0","WorkingDir":"/","StopSignal":"SIGTERM"}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#
    );
    texts(&[&manifest, &index, &config])
}

/// Report lines and a job of `fetch`.
#[must_use]
pub fn fetch_report() -> Seeds {
    texts(&[
        r#"{"progress":{"phase":"downloading","bytes":5,"total":10}}"#,
        r#"{"failed":{"class":"content","text":"x"}}"#,
        r#"{"report_fd":4,"server":{"base_url":"https://a","user":"","password":"","ca_pem":[]},"task":{"oci":{"repository":"a","reference":"b","sha256":"","max_bytes":0,"output_fd":5,"spool_fd":6}}}"#,
    ])
}

/// A DHCP discover and an offer, bare and in IP.
#[must_use]
pub fn dhcp() -> Seeds {
    let request = Message::request(MessageType::Discover, 0x0102_0304, [2, 0, 0, 0, 0, 1]);
    let mut offer = request.answer(MessageType::Offer);
    offer.yiaddr = Ipv4Addr::new(10, 0, 0, 2);
    offer.set_addresses(1, &[Ipv4Addr::new(255, 255, 255, 0)]);
    offer.set_addresses(3, &[Ipv4Addr::new(10, 0, 0, 1)]);
    offer.set_addresses(6, &[Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 3)]);
    offer.set_addresses(54, &[Ipv4Addr::new(10, 0, 0, 1)]);
    offer.set(51, 3600u32.to_be_bytes());
    offer.set(15, *b"example.test");
    offer.set(121, [24, 10, 1, 2, 10, 0, 0, 1, 0, 10, 0, 0, 254]);
    let udp = packet::build_udp((Ipv4Addr::new(10, 0, 0, 1), 67), (Ipv4Addr::BROADCAST, 68), &offer.encode());
    vec![request.encode(), offer.encode(), udp]
}

/// An offer and an acknowledgement as the guest's client gets them, behind the byte that chooses its state.
#[must_use]
pub fn guest_dhcp() -> Seeds {
    dhcp().iter().flat_map(|m| [[&[0], m.as_slice()].concat(), [&[1], m.as_slice()].concat()]).collect()
}

/// A query, with and without EDNS.
#[must_use]
pub fn dns() -> Seeds {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend(encode_name("web.example.test"));
    query.extend([0, 1, 0, 1]);
    let mut edns = query.clone();
    edns[11] = 1;
    edns.extend([0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0]);
    vec![query, edns]
}

/// What `netsvc` and the agent say to each other.
#[must_use]
pub fn netsvc_control() -> Seeds {
    let requests = [holdfast_netsvc::config::Request::Subscribe];
    requests.iter().filter_map(|r| serde_json::to_vec(r).ok()).collect()
}

/// Requests to PID 1.
#[must_use]
pub fn supervise_packet() -> Seeds {
    let Ok(name) = UnitName::new("vmm-1") else {
        return vec![];
    };
    let spec = UnitSpec::new(name.clone(), "/bin/vmm", 2000);
    let requests = [
        Request::Start(Box::new(spec)),
        Request::Stop { name: name.clone(), deadline_ms: Some(5) },
        Request::Logs { after: 7, unit: Some(name), max: 100 },
        Request::Reboot { reason: "update".into() },
    ];
    requests.iter().filter_map(|r| serde_json::to_vec(r).ok()).collect()
}

/// Unit names and app names.
#[must_use]
pub fn names() -> Seeds {
    texts(&["vmm-00000000-0000-0000-0000-000000000007", "node", "My App_1 \u{fc}"])
}

/// Lines of a guest's console.
#[must_use]
pub fn guest_report() -> Seeds {
    texts(&[
        "holdfast-guest: exit code=3",
        "holdfast-guest: exit signal=9",
        "holdfast-guest: error: no rootfs",
        "hello",
    ])
}

/// `user` and the files it is looked up in.
#[must_use]
pub fn account() -> Seeds {
    texts(&[
        "web:7\nroot:x:0:0:root:/root:/bin/sh\nweb:x:101:102:web:/var/www:/bin/false\nvideo:x:44:web\n",
        "101:102\n",
    ])
}

/// The app document, padded as on its disk.
#[must_use]
pub fn document() -> Seeds {
    let mut bytes = br#"{"hostname":"web","argv":["/bin/server","-v"],"env":["A=1"],"user":"","cwd":"","stop_signal":"","grace_seconds":10,"mounts":[{"disk":"vol0","at":"/data","read_only":false}]}"#.to_vec();
    let plain = bytes.clone();
    bytes.resize(512, 0);
    vec![plain, bytes]
}

/// A vault header is only made with its key; noise with its magic.
#[must_use]
pub fn vault_header() -> Seeds {
    vec![[b"HFVAULT1".as_slice(), &[1; 120]].concat()]
}

/// An envelope around a small payload.
#[must_use]
pub fn envelope() -> Seeds {
    let inner = proto::certs::ZControllerCert::default().encode_to_vec();
    let container = proto::auth::AuthContainer {
        protected_payload: Some(proto::auth::AuthBody { payload: inner }),
        sender_cert_hash: vec![1; 32],
        signature_hash: vec![2; 64],
        ..Default::default()
    };
    vec![container.encode_to_vec()]
}

/// A config with one of most things.
#[must_use]
pub fn config() -> Seeds {
    let id = |n: u32| {
        Some(proto::config::UuiDandVersion { uuid: format!("00000000-0000-0000-0000-{n:012}"), version: "1".into() })
    };
    let config = proto::config::EdgeDevConfig {
        id: id(1),
        apps: vec![proto::config::AppInstanceConfig {
            uuidandversion: id(2),
            displayname: "web".into(),
            activate: true,
            ..Default::default()
        }],
        network_instances: vec![proto::config::NetworkInstanceConfig {
            uuidandversion: id(3),
            displayname: "local".into(),
            ..Default::default()
        }],
        config_items: vec![proto::config::ConfigItem { key: "timer.config.interval".into(), value: "30".into() }],
        ..Default::default()
    };
    let response = proto::config::ConfigResponse { config: Some(config), config_hash: "h".into() };
    vec![response.encode_to_vec()]
}

/// A reply of attestation with a nonce.
#[must_use]
pub fn attest_response() -> Seeds {
    let response = proto::attest::ZAttestResponse {
        nonce: Some(proto::attest::ZAttestNonceResp { nonce: vec![7; 32] }),
        ..Default::default()
    };
    vec![response.encode_to_vec()]
}

/// A request with a quote.
#[must_use]
pub fn attest_request() -> Seeds {
    let request = proto::attest::ZAttestReq {
        req_type: proto::attest::ZAttestReqType::AttestReqQuote as i32,
        quote: Some(proto::attest::ZAttestQuote {
            attest_data: quote().remove(0),
            signature: vec![2; 64],
            ..Default::default()
        }),
        ..Default::default()
    };
    vec![request.encode_to_vec()]
}

/// A TPMS_ATTEST of a quote over PCR 0 (TPM 2.0 part 2, 10.12.12).
#[must_use]
pub fn quote() -> Seeds {
    let mut out = vec![0xff, 0x54, 0x43, 0x47, 0x80, 0x18, 0, 0, 0, 4, 1, 2, 3, 4];
    out.extend([0; 25]);
    out.extend([0, 0, 0, 1, 0, 0x0b, 3, 1, 0, 0, 0, 32]);
    out.extend([5; 32]);
    vec![out]
}

/// A certificate in PEM.
#[must_use]
pub fn certificate() -> Seeds {
    vec![include_bytes!("../../../qemu-tests/controller/tests/data/device.cert.pem").to_vec()]
}

/// A stored config file's head.
#[must_use]
pub fn config_file() -> Seeds {
    vec![[b"HFCONF1\n".as_slice(), &[2, 0, 0, 0], b"ab", &[3, 0, 0, 0], b"xyz", &[0; 32]].concat()]
}

/// A gzip upload of log lines.
#[must_use]
pub fn logs() -> Seeds {
    let line =
        r#"{"severity":"info","source":"node","iid":"7","content":"hi","msgid":3,"timestamp":{"seconds":5,"nanos":6}}"#;
    let mut encoder = GzBuilder::new()
        .comment(r#"{"devID":"d","image":"IMGA","eveVersion":"1"}"#)
        .write(Vec::new(), Compression::fast());
    let _ = encoder.write_all(line.as_bytes());
    encoder.finish().into_iter().collect()
}

/// A descriptor table, an available ring and a request header where the harness of the devices puts them: the same 4 KiB again
/// and again, so the table of each queue is at a multiple of it.
#[must_use]
pub fn rings() -> Seeds {
    let mut memory = vec![0u8; 4096];
    // Three chained descriptors: header (read), data (write), status (write).
    for (n, (address, length, flags, next)) in
        [(0x3800u64, 16u32, 1u16, 1u16), (0x4a00, 512, 3, 2), (0x5c00, 1, 2, 0)].into_iter().enumerate()
    {
        let at = n * 16;
        memory[at..at + 8].copy_from_slice(&address.to_le_bytes());
        memory[at + 8..at + 12].copy_from_slice(&length.to_le_bytes());
        memory[at + 12..at + 14].copy_from_slice(&flags.to_le_bytes());
        memory[at + 14..at + 16].copy_from_slice(&next.to_le_bytes());
    }
    // Available ring: index 1, first entry descriptor 0.
    memory[0x402] = 1;
    let mut writes = memory.clone();
    writes[0x800] = 1;
    writes[0x1c] = 1;
    // Without event index and indirect descriptors (bits 29 and 28), the same request again after each round.
    let mut again = memory.clone();
    again[0xff0..0xff4].fill(1);
    again[0xffb] = 0x30;
    // The same three descriptors in an indirect table.
    let mut indirect = memory.clone();
    indirect.copy_within(0..48, 0xe00);
    indirect[..16].copy_from_slice(&[0, 0x3e, 0, 0, 0, 0, 0, 0, 48, 0, 0, 0, 4, 0, 0, 0]);
    vec![memory, writes, again, indirect]
}

/// Rings of a network card: of frames, and of its control queue with a command for two queue pairs.
#[must_use]
pub fn net_rings() -> Seeds {
    let mut seeds = rings();
    let mut memory = vec![0u8; 4096];
    // Two chained descriptors: the command (read), the answer (write).
    for (n, (address, length, flags)) in [(0x3c00u64, 4u32, 1u16), (0x4d00, 1, 2)].into_iter().enumerate() {
        memory[n * 16..n * 16 + 8].copy_from_slice(&address.to_le_bytes());
        memory[n * 16 + 8..n * 16 + 12].copy_from_slice(&length.to_le_bytes());
        memory[n * 16 + 12..n * 16 + 14].copy_from_slice(&flags.to_le_bytes());
    }
    memory[14] = 1;
    memory[0x402] = 1;
    memory[0xc00..0xc04].copy_from_slice(&[4, 0, 2, 0]);
    seeds.push(memory);
    // One receive buffer of 2 KiB for each pair.
    let mut memory = vec![0u8; 4096];
    memory[..8].copy_from_slice(&0x1_0000u64.to_le_bytes());
    memory[8..12].copy_from_slice(&2048u32.to_le_bytes());
    memory[12] = 2;
    memory[0x402] = 1;
    seeds.push(memory);
    seeds
}

/// [`rings`] with requests of a disk: also a discard and a write-zeroes.
#[must_use]
pub fn block_rings() -> Seeds {
    let mut seeds = rings();
    let Some(write) = seeds.get(1).cloned() else {
        return seeds;
    };
    // (type, flags of the range)
    for (kind, flags) in [(11u8, 0u8), (13, 1)] {
        let mut memory = write.clone();
        memory[0x800] = kind;
        // The second descriptor holds one range of 16 bytes: 8 sectors from sector 2 on.
        memory[0x18..0x1a].copy_from_slice(&16u16.to_le_bytes());
        memory[0xa00] = 2;
        memory[0xa08] = 8;
        memory[0xa0c] = flags;
        seeds.push(memory);
    }
    seeds
}

/// Two pages that the harness of the devices repeats: the even one is under the transmit queues, with control messages of a
/// console's driver, the odd one under the receive queues, with buffers.
#[must_use]
pub fn console() -> Seeds {
    let mut memory = vec![0u8; 2 * 4096];
    // Device ready, port 1 ready, port 1 open (id, event, value), and buffers for what the device answers.
    let messages: [(u32, u16); 3] = [(u32::MAX, 0), (1, 3), (1, 6)];
    for (n, (id, event)) in messages.into_iter().enumerate() {
        let (message, transmit, receive) = (0x300 + 8 * n, 16 * n, 4096 + 16 * n);
        memory[message..message + 4].copy_from_slice(&id.to_le_bytes());
        memory[message + 4..message + 6].copy_from_slice(&event.to_le_bytes());
        memory[message + 6] = 1;
        memory[transmit..transmit + 8].copy_from_slice(&(message as u64).to_le_bytes());
        memory[transmit + 8] = 8;
        memory[receive..receive + 8].copy_from_slice(&(0x3_0000 + 0x100 * n as u64).to_le_bytes());
        // 256 bytes that the device writes.
        memory[receive + 9] = 1;
        memory[receive + 12] = 2;
        for page in [0, 4096] {
            memory[page + 0x402] = 3;
            memory[page + 0x404 + 2 * n] = n as u8;
        }
    }
    // The eighth write to the configuration space: `emerg_wr`.
    memory[63..72].copy_from_slice(&[0, 0, 0, 8, b'!', 0, 0, 0, 0]);
    [rings(), vec![memory]].concat()
}

/// Register accesses: offset, width, value.
#[must_use]
pub fn accesses() -> Seeds {
    vec![
        vec![4, 0, 6, 0, 0, 0, 0x10, 0, 0xff, 0xff, 0xff, 0xff, 0x3c, 0, 1, 0, 0, 0],
        (0..96u8).collect(),
        vec![1, 20, 0, 1, 1, 20, 0, 3, 1, 22, 0, 0, 0, 4, 0, 0, 1, 28, 0, 1],
    ]
}

/// How a driver brings each kind of function up: the function, then accesses of 12 bytes (way, offset, width, value).
#[must_use]
pub fn bring_up() -> Seeds {
    const WRITE: u8 = 3;
    let mut steps = Vec::new();
    let mut write = |offset: u16, width: u8, value: u64| {
        steps.extend([WRITE, offset.to_le_bytes()[0], offset.to_le_bytes()[1], width]);
        steps.extend(value.to_le_bytes());
    };
    // Status, features (VERSION_1, INDIRECT_DESC, EVENT_IDX), status.
    for (offset, width, value) in [(0x14, 0, 3u64), (0x08, 2, 0), (0x0c, 2, 3 << 28), (0x08, 2, 1), (0x0c, 2, 1)] {
        write(offset, width, value);
    }
    write(0x14, 0, 0x0b);
    for queue in 0..4 {
        for (offset, width, value) in [(0x16, 1, queue), (0x18, 1, 16), (0x1a, 1, queue)] {
            write(offset, width, value);
        }
        for (offset, area) in [(0x20, 0x1000), (0x28, 0x1400), (0x30, 0x1800)] {
            write(offset, 3, area + 0x1000 * queue);
        }
        write(0x1c, 1, 1);
    }
    // A vector's address, data and mask, then DRIVER_OK, a doorbell, a byte of the device's own configuration.
    for (offset, width, value) in [(0x4000, 3, 0xfee0_0000u64), (0x4008, 2, 0x40), (0x400c, 2, 0), (0x14, 0, 0x0f)] {
        write(offset, width, value);
    }
    write(0x3000, 2, 0);
    write(0x2000, 2, 7);
    // What of a console is its emergency write.
    write(0x2008, 2, u64::from(b'!'));
    // MSI-X on, the window into the BAR opened: configuration writes.
    for (offset, width, value) in [(4u8, 1, 6u64), (0x9a, 1, 0xc000), (0x8c, 2, 0x14), (0x90, 2, 1)] {
        steps.extend([1, offset, 0, width]);
        steps.extend(value.to_le_bytes());
    }
    steps.extend([0, 0x94, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
    (0..6u8).map(|function| [&[function], steps.as_slice()].concat()).collect()
}

/// A VM's configuration: with descriptors and every device, and with paths.
#[must_use]
pub fn vmm_config() -> Seeds {
    texts(&[
        r#"{"name":"web","vcpus":2,"memory_mib":256,"cpus":[0,[1,2]],"hugepages":"none","prefault":true,"kernel":{"fd":6},
        "initrd":{"fd":7},"cmdline":"quiet","kvm":{"fd":5},"pci_ports":true,
        "disks":[{"id":"root","file":{"fd":8},"read_only":true,"format":"raw","lock":false,"limits":{"ops_per_second":5,"burst_ops":1}}],
        "nets":[{"mac":"02:00:00:00:00:01","tap":{"fds":[9,12]},"vhost":{"fds":[10,13]},"queue_pairs":2,"mtu":1500},
            {"mac":"02:00:00:00:00:02","link":{"unix":{"fd":14}},"limits":{"receive":{"bytes_per_second":9,"burst_bytes":2}}}],
        "rng":false,"console":{"output":{"fd":15},"input":{"fd":16},"size":{"columns":132,"rows":43},
            "ports":[{"name":"agent","output":{"fd":17},"input":{"fd":18}}]},
        "vsock":{"cid":3,"vhost":{"fd":19}},"balloon":{"free_page_reporting":true,"deflate_on_oom":false},
        "serial":{"output":{"fd":20}},"control":{"fd":11},"jail":{"uid":1000,"gid":1000,"pid_namespace":false},
        "trace":{"exits":true}}"#,
        r#"{"name":"dev","vcpus":1,"memory_mib":32,"kernel":{"path":"/boot/vmlinux"},
        "disks":[{"id":"root","file":{"path":"/root.img"}}],
        "nets":[{"mac":"02:00:00:00:00:01","tap":{"name":"tap0"},"vhost":{"path":"/dev/vhost-net"}}],
        "console":{},"control":{"path":"/run/control"}}"#,
    ])
}

/// Requests to a VMM and what it answers.
#[must_use]
pub fn vmm_control() -> Seeds {
    use holdfast_vmm::control::{Reply, Request, RunState};
    let size = holdfast_vmm::terminal::WindowSize { columns: 132, rows: 43 };
    let requests = [
        Request::Ping,
        Request::Stop { deadline_ms: 1000 },
        Request::Balloon { target_mib: 64 },
        Request::VsockCid { cid: 4 },
        Request::Stats,
        Request::AttachConsole { console: Some("serial".into()), replay: false },
        Request::ResizeConsole { console: None, size },
    ];
    let replies = [
        Reply::Pong { version: "1.0".into(), state: RunState::Paused },
        Reply::Attached { console: "serial".into(), replayed: 9 },
        Reply::Refused { reason: "no".into() },
    ];
    let stats = r#"{"is":"stats","state":"running","uptime_ms":9,"setup_cpu_us":8,"vcpus":[{"pio_exits":1,"mmio_exits":2,"hottest":[]}],
        "devices":[["net0",{"out_bytes":1,"in_bytes":2,"out_ops":3,"in_ops":4,"errors":0}]],"consoles":[]}"#;
    let requests = requests.iter().filter_map(|r| serde_json::to_vec(r).ok());
    requests.chain(replies.iter().filter_map(|r| serde_json::to_vec(r).ok())).chain([stats.into()]).collect()
}

/// An ELF kernel with one segment and a PVH note.
#[must_use]
pub fn kernel() -> Seeds {
    let mut elf = vec![0u8; 64 + 2 * 56];
    elf[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(24, &0x0100_0000u64.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 2, 0]);
    let segment = |kind: u32, offset: u64, address: u64, size: u64| {
        let mut s = [kind.to_le_bytes(), 5u32.to_le_bytes()].concat();
        for number in [offset, address, address, size, size, 4] {
            s.extend(number.to_le_bytes());
        }
        s
    };
    put(64, &segment(1, 0, 0x0100_0000, 176));
    put(120, &segment(4, 176, 0x0100_0100, 20));
    // Xen note 18: the PVH entry point.
    elf.extend([4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    elf.extend(b"Xen\0");
    elf.extend(0x0100_0000u32.to_le_bytes());
    vec![elf]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations of what is refused at its first byte find little.
    #[test]
    fn documents_among_the_seeds_are_accepted() {
        for seed in vmm_config() {
            let read = holdfast_vmm::VmConfig::from_json(&seed);
            assert!(read.is_ok(), "{}: {read:?}", String::from_utf8_lossy(&seed));
        }
        for seed in vmm_control() {
            use holdfast_vmm::control::{Reply, Request};
            let request = serde_json::from_slice::<Request>(&seed).map_err(|e| e.to_string());
            let reply = serde_json::from_slice::<Reply>(&seed).map_err(|e| e.to_string());
            assert!(request.is_ok() || reply.is_ok(), "{}: {request:?} {reply:?}", String::from_utf8_lossy(&seed));
        }
        for seed in site().iter().filter(|seed| seed.first() == Some(&b'{')) {
            serde_json::from_slice::<Site>(seed).unwrap();
        }
        for seed in netsvc_control() {
            serde_json::from_slice::<holdfast_netsvc::config::Request>(&seed).unwrap();
        }
        for seed in document() {
            let text = seed.split(|byte| *byte == 0).next().unwrap_or_default();
            serde_json::from_slice::<serde_json::Value>(text).unwrap();
        }
    }
}
