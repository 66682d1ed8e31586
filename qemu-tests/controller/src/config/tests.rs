//! The documents of the demo and of the tests, and broken ones.

use super::*;
use crate::config::*;
use crate::pki::{Pki, PkiOptions};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

fn demo() -> DeviceConfig {
    let mut app = App::container("web", "webapp", "local", &[(8080, 80)]);
    app.env.insert("GREETING".into(), "hello".into());
    DeviceConfig {
        datastores: vec![Datastore {
            name: "registry".into(),
            kind: DatastoreKind::Registry,
            address: "10.0.2.2:5000".into(),
            path: String::new(),
            user: "u".into(),
            password: "p".into(),
            encrypt: false,
            ca_pem: vec!["PEM".into()],
        }],
        images: vec![Image::container("webapp", "registry", "demo/webapp:1")],
        network_instances: vec![NetworkInstance::local("local", "eth0", "10.11.12.0/24")],
        apps: vec![app],
        ..DeviceConfig::quick()
    }
}

fn with<T>(device_key: Option<(p256::PublicKey, Vec<u8>)>, f: impl FnOnce(&Context<'_>) -> T) -> T {
    let pki = Pki::generate(&PkiOptions::default()).expect("pki");
    f(&Context {
        device: Uuid::from_u128(7),
        revision: 3,
        set_at_ms: 1_500,
        ecdh: &pki.ecdh,
        device_key,
        certs_hash: "h".into(),
    })
}

#[test]
fn the_demo_document_becomes_what_the_wire_describes() {
    let out = with(None, |context| build(&demo(), context)).expect("built");
    let id = |kind: &str, name: &str| object_id(Uuid::from_u128(7), kind, name).to_string();
    assert_eq!(out.id.as_ref().map(|i| i.version.as_str()), Some("3"));
    let port = &out.device_io_list[0];
    assert_eq!((port.ptype, port.usage, port.logicallabel.as_str()), (1, 1, "eth0"));
    assert_eq!(port.phyaddrs["Ifname"], "eth0");
    let adapter = &out.system_adapter_list[0];
    assert_eq!((adapter.name.as_str(), adapter.uplink), ("eth0", true));
    assert_eq!(adapter.network_uuid, out.networks[0].id);
    assert_eq!(out.networks[0].ip.as_ref().map(|ip| ip.dhcp), Some(4));
    let ni = &out.network_instances[0];
    assert_eq!((ni.inst_type, ni.activate, ni.ip_type), (2, true, 1));
    let ip = ni.ip.as_ref().expect("ip");
    assert_eq!((ip.subnet.as_str(), ip.gateway.as_str()), ("10.11.12.0/24", "10.11.12.1"));
    let app = &out.apps[0];
    assert_eq!(app.volume_ref_list[0].uuid, id("volume", "web-root"));
    assert_eq!(app.fixedresources.as_ref().map(|r| r.memory), Some(256 * 1024));
    assert_eq!(app.user_data, STANDARD.encode("GREETING=hello\n"));
    let acls = &app.interfaces[0].acls;
    assert_eq!(acls[0].matches[0].value, "0.0.0.0/0");
    assert!(acls[0].actions.is_empty());
    assert_eq!(acls[1].matches[1].r#type, "lport");
    assert_eq!(acls[1].actions[0].app_port, 80);
    let volume = &out.volumes[0];
    assert_eq!(volume.origin.as_ref().map(|o| o.r#type), Some(2));
    assert_eq!(out.content_info[0].iformat, 8);
    assert_eq!(out.content_info[0].ds_ids_list, vec![id("datastore", "registry")]);
    assert_eq!(out.datastores[0].d_type, 5);
    assert_eq!(out.config_timestamp.map(|t| (t.seconds, t.nanos)), Some((1, 500_000_000)));
    assert!(out.reboot.is_none() && out.cipher_contexts.is_empty());
}

#[test]
fn references_to_nothing_are_named() {
    type Break = fn(&mut DeviceConfig);
    let cases: [(Break, &str); 7] = [
        (|c| c.ports[0].network = "x".into(), "port \"eth0\": there is no network named \"x\""),
        (|c| c.images[0].datastore = "x".into(), "image \"webapp\": there is no datastore"),
        (|c| c.apps[0].image = Some("x".into()), "volume \"web-root\": there is no image"),
        (|c| c.apps[0].interfaces[0].network = "x".into(), "app \"web\": there is no network-instance"),
        (|c| c.network_instances[0].port = "eth9".into(), "there is no port named \"eth9\""),
        (|c| c.apps.push(c.apps[0].clone()), "used twice"),
        (|c| c.images[0].sha256 = "zz".into(), "64 hex digits"),
    ];
    for (change, text) in cases {
        let mut config = demo();
        change(&mut config);
        let error = with(None, |context| build(&config, context)).expect_err(text).to_string();
        assert!(error.contains(text), "{error} lacks {text}");
    }
}

#[test]
fn secrets_wait_for_the_devices_certificate_and_then_are_encrypted() {
    let mut config = demo();
    config.apps[0].encrypt = true;
    config.datastores[0].encrypt = true;
    let error = with(None, |context| build(&config, context));
    assert!(matches!(error, Err(BuildError::NoDeviceKey { .. })));
    let device = p256::SecretKey::from_slice(&[5; 32]).expect("scalar");
    let key = Some((device.public_key(), vec![1; 16]));
    let out = with(key, |context| build(&config, context)).expect("built");
    let context = &out.cipher_contexts[0];
    let block = out.apps[0].cipher_data.as_ref().expect("encrypted");
    assert_eq!(block.cipher_context_id, context.context_id);
    assert_eq!(context.device_cert_hash, vec![1; 16]);
    assert!(out.apps[0].user_data.is_empty() && out.datastores[0].password.is_empty());
    assert_ne!(block.initial_value, out.datastores[0].cipher_data.as_ref().expect("encrypted").initial_value);
}

#[test]
fn a_document_with_an_unknown_word_is_refused() {
    assert!(serde_json::from_str::<DeviceConfig>(r#"{"aps":[]}"#).is_err());
    let text = serde_json::to_string(&demo()).expect("json");
    assert_eq!(serde_json::from_str::<DeviceConfig>(&text).expect("json"), demo());
}
