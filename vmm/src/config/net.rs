//! Network interfaces: which fields go together, and their ranges.

use holdfast_links::path::LONGEST;
use holdfast_model::contract::vm::{LinkRef, NetConfig, TapRef, UnixRef, VhostRef};

use super::{ConfigError, range};
use crate::rate::limit_fault;
use crate::virtio::net::MAX_PAIRS;

/// Checks one card, called `name` in messages, of a VM with this many vCPUs.
pub(super) fn validate(net: &NetConfig, name: &str, vcpus: u8) -> Result<(), ConfigError> {
    if let Some(mtu) = net.mtu {
        range(&format!("{name}.mtu"), &mtu, "68 to 65521", (68..=65521).contains(&mtu))?;
    }
    let pairs = net.queue_pairs;
    let most = MAX_PAIRS.min(vcpus.into());
    let expected = format!("1 to {most} (at most {MAX_PAIRS}, and one for each vCPU)");
    range(&format!("{name}.queue_pairs"), &pairs, &expected, (1..=most).contains(&pairs))?;
    match (&net.tap, &net.link) {
        (Some(tap), None) => validate_tap(net, name, tap)?,
        (None, Some(LinkRef::Unix(unix))) => {
            let expected = "1, since the cable is a unix link";
            range(&format!("{name}.queue_pairs"), &pairs, expected, pairs == 1)?;
            range(&format!("{name}.vhost"), &"given", "to be left out, since the cable is no tap", {
                net.vhost.is_none()
            })?;
            if let UnixRef::Path(path) = unix {
                let expected = format!("1 to {LONGEST} bytes, so that it fits a socket's address");
                let len = path.as_os_str().len();
                range(&format!("{name}.link.unix.path"), &format!("{len} bytes"), &expected, {
                    (1..=LONGEST).contains(&len)
                })?;
            }
        }
        (tap, _) => {
            let found = if tap.is_some() { "given beside tap" } else { "absent, and tap too" };
            range(&format!("{name}.link"), &found, "either tap or link", false)?;
        }
    }
    let Some(limits) = &net.limits else {
        return Ok(());
    };
    let expected = "to be left out with vhost, where frames do not pass through the VMM: limit the tap with tc or nft \
                        on the host, or leave out vhost";
    range(&format!("{name}.limits"), &"given", expected, net.vhost.is_none())?;
    for (way, limits) in [("receive", &limits.receive), ("transmit", &limits.transmit)] {
        if let Some(fault) = limit_fault(limits) {
            range(&format!("{name}.limits.{way}.{}", fault.field), &fault.found, &fault.expected, false)?;
        }
    }
    Ok(())
}

fn validate_tap(net: &NetConfig, name: &str, tap: &TapRef) -> Result<(), ConfigError> {
    let pairs = usize::from(net.queue_pairs);
    let one_for_each = format!("one for each of {pairs} queue pairs");
    let count = |field: &str, count: usize| {
        range(&format!("{name}.{field}"), &format!("{count} descriptors"), &one_for_each, count == pairs)
    };
    match tap {
        TapRef::Name(tap) => {
            range(&format!("{name}.tap"), &format!("{tap:?}"), "an interface name of 1 to 15 characters", {
                (1..=15).contains(&tap.len()) && tap.bytes().all(|c| c.is_ascii_graphic() && c != b'/')
            })?;
        }
        TapRef::Fd(_) => count("tap", 1)?,
        TapRef::Fds(fds) => count("tap", fds.len())?,
    }
    match &net.vhost {
        Some(VhostRef::Fd(_)) => count("vhost", 1),
        Some(VhostRef::Fds(fds)) => count("vhost", fds.len()),
        Some(VhostRef::Path(_)) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str, vcpus: u8) -> Result<(), String> {
        let text = format!(r#"{{"mac": "02:00:00:00:00:01", {json}}}"#);
        let net: NetConfig = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        let again: NetConfig = serde_json::from_slice(&serde_json::to_vec(&net).unwrap()).unwrap();
        assert_eq!(again, net);
        validate(&net, "nets[0]", vcpus).map_err(|e| e.to_string())
    }

    #[test]
    fn cables_and_queue_pairs_are_taken() {
        for json in [
            r#""tap": {"name": "tap0"}, "queue_pairs": 4, "vhost": {"path": "/dev/vhost-net"}"#,
            r#""tap": {"fds": [4, 5]}, "queue_pairs": 2, "vhost": {"fds": [6, 7]}"#,
            r#""tap": {"fds": [4]}, "vhost": {"fd": 5}"#,
            r#""link": {"unix": {"fd": 4}}, "mtu": 65521"#,
            r#""link": {"unix": {"path": "/run/cable"}}, "mtu": 9000"#,
            r#""link": {"unix": {"fd": 4}}, "limits": {"receive": {"bytes_per_second": 1000000}}"#,
            r#""tap": {"fd": 4}, "limits": {"transmit": {"ops_per_second": 100, "burst_ops": 10}}"#,
        ] {
            assert_eq!(parse(json, 4), Ok(()), "{json}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        for (json, words) in [
            (r#""mtu": 1500"#, &["nets[0].link", "absent", "either tap or link"][..]),
            (r#""tap": {"fd": 4}, "link": {"unix": {"fd": 5}}"#, &["nets[0].link", "beside tap"]),
            (r#""tap": {"name": "tap0"}, "queue_pairs": 5"#, &["queue_pairs is 5", "1 to 4", "vCPU"]),
            (r#""tap": {"name": "tap0"}, "queue_pairs": 0"#, &["queue_pairs is 0"]),
            (r#""tap": {"fd": 4}, "queue_pairs": 2"#, &["tap is 1 descriptors", "2 queue pairs"]),
            (r#""tap": {"name": "t"}, "queue_pairs": 2, "vhost": {"fd": 5}"#, &["vhost is 1 descriptors"]),
            (r#""link": {"unix": {"fd": 4}}, "queue_pairs": 2"#, &["queue_pairs is 2", "unix"]),
            (r#""link": {"unix": {"fd": 4}}, "vhost": {"fd": 5}"#, &["vhost", "no tap"]),
            (r#""link": {"unix": {"path": ""}}"#, &["link.unix.path is 0 bytes", "1 to 105"]),
            (r#""tap": {"fd": 4}, "vhost": {"fd": 5}, "limits": {}"#, &["limits", "vhost", "tc or nft"]),
            (
                r#""tap": {"fd": 4}, "limits": {"receive": {"bytes_per_second": 0}}"#,
                &["limits.receive.bytes_per_second"],
            ),
            (r#""tap": {"name": "far/too"}"#, &["nets[0].tap", "interface name"]),
        ] {
            let error = parse(json, 4).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{words:?} not in {error:?}");
        }
        let long = |len| parse(&format!(r#""link": {{"unix": {{"path": "{}"}}}}"#, "p".repeat(len)), 1);
        assert!(long(105).is_ok() && long(106).unwrap_err().contains("106 bytes"));
        assert!(parse(r#""tap": {"name": "tap0"}, "queue_pairs": 17"#, 64).unwrap_err().contains("1 to 16"));
    }
}
