//! Parsers of untrusted bytes that need no entry of their own: one public function, called here.

use holdfast_format::{release::Release, verity};
use holdfast_model::contract;
use holdfast_netsvc::dhcp::{Message, packet};
use holdfast_node::parts::app::vm;
use holdfast_supervise::UnitName;
use holdfast_test_controller::x509::Cert;

fn text(data: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(data)
}

/// The release document of a slot.
pub fn fuzz_release(data: &[u8]) {
    if let Ok(release) = Release::decode(data) {
        assert_eq!(Release::decode(&release.encode()).ok(), Some(release));
    }
}

/// The verity root on a kernel command line.
pub fn fuzz_cmdline(data: &[u8]) {
    if let Ok(root) = verity::Root::from_cmdline(&text(data)) {
        assert_eq!(verity::Root::from_cmdline(&root.to_cmdline()).ok(), Some(root));
    }
}

/// Names of units, and of apps as host names.
pub fn fuzz_names(data: &[u8]) {
    let name = text(data);
    if let Ok(unit) = UnitName::new(name.clone()) {
        assert_eq!(unit.as_str(), name);
        let _ = vm::app_of(&unit);
    }
    let host = vm::host_name(&name);
    assert!((1..=63).contains(&host.len()) && !host.starts_with('-') && !host.ends_with('-'), "{host}");
}

/// What a unit says as it ends, and what a guest says to its VMM.
pub fn fuzz_last_words(data: &[u8]) {
    if let Some(end) = holdfast_unit::last_words::parse(data) {
        let again = holdfast_unit::last_words::encode(&end);
        assert_eq!(holdfast_unit::last_words::parse(&again), Some(end.clone()));
        let _ = holdfast_vmm::guest_end::refine(end, data);
    }
}

/// A report line of the sandboxed `fetch`, and the job it is given.
pub fn fuzz_fetch_report(data: &[u8]) {
    let _ = serde_json::from_slice::<contract::fetch::Report>(data);
    let _ = contract::read::<contract::fetch::Job>(data);
}

/// What `netsvc` and the agent say to each other.
pub fn fuzz_netsvc_control(data: &[u8]) {
    let _ = serde_json::from_slice::<contract::network::Request>(data);
    let _ = serde_json::from_slice::<contract::network::Reply>(data);
    let _ = contract::read::<contract::network::ServiceDocument>(data);
}

/// The options of a DHCP message, each read as everything that it could be.
pub fn fuzz_dhcp_options(data: &[u8]) {
    let message =
        Message::parse(data).ok().or_else(|| Message::parse(packet::parse_udp(data, 68, false)?.payload).ok());
    let Some(message) = message else {
        return;
    };
    let _ = message.routes();
    for option in message.options.keys() {
        let _ = (message.address(*option), message.addresses(*option), message.number(*option), message.text(*option));
    }
}

/// A certificate that a device presents.
pub fn fuzz_certificate(data: &[u8]) {
    let _ = Cert::from_pem("fuzz", data);
}
