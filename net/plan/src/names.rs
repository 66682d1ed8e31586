//! Names and numbers that must be the same after every restart, so they are derived and not counted.

use holdfast_model::net::Mac;
use uuid::Uuid;

/// FNV-1a with a final mix, so that UUIDs that differ in one digit differ everywhere.
fn hash(parts: &[&[u8]]) -> u64 {
    let mut h: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in parts.iter().flat_map(|p| p.iter()) {
        h = (h ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

fn digits(h: u64) -> String {
    // Interface names have at most 15 bytes.
    format!("{:010x}", h & 0xff_ffff_ffff)
}

/// Bridge of a network instance.
#[must_use]
pub fn bridge(instance: Uuid) -> String {
    format!("br-{}", digits(hash(&[instance.as_bytes()])))
}

/// Tap of an app's interface.
#[must_use]
pub fn tap(app: Uuid, index: usize) -> String {
    format!("tap-{}", interface_id(app, index))
}

/// True for an interface name of the form that bridges and taps have.
#[must_use]
pub fn is_ours(interface: &str) -> bool {
    ["br-", "tap-"].iter().any(|prefix| interface.starts_with(prefix))
}

/// The chain that says with whom the apps of a network instance may talk at all.
#[must_use]
pub fn network_chain(instance: Uuid) -> String {
    format!("net-{}", digits(hash(&[instance.as_bytes()])))
}

/// Part of the names of an app interface's chains.
#[must_use]
pub fn interface_id(app: Uuid, index: usize) -> String {
    digits(hash(&[app.as_bytes(), &(index as u64).to_be_bytes()]))
}

fn mac(h: u64) -> Mac {
    // Locally administered, unicast.
    let [_, _, _, b, c, d, e, f] = h.to_be_bytes();
    [0x02, b, c, d, e, f]
}

/// MAC of an app's interface.
#[must_use]
pub fn app_mac(app: Uuid, index: usize) -> Mac {
    mac(hash(&[b"app", app.as_bytes(), &(index as u64).to_be_bytes()]))
}

/// MAC of a bridge.
#[must_use]
pub fn bridge_mac(instance: Uuid) -> Mac {
    mac(hash(&[b"bridge", instance.as_bytes()]))
}

/// Routing table of a network instance, far from the tables with a meaning of their own.
#[must_use]
pub fn table(instance: Uuid) -> u32 {
    1_000_000 + (hash(&[b"table", instance.as_bytes()]) % 1_000_000_000) as u32
}

/// Unit name of the service of a network instance.
#[must_use]
pub fn network_service(instance: Uuid) -> String {
    format!("net-{}", digits(hash(&[instance.as_bytes()])))
}

/// Unit name of the DHCP client of a port.
#[must_use]
pub fn dhcp_client(interface: &str) -> String {
    format!("dhcp-{interface}")
}

/// A display name as a DNS label: lower case, what does not fit becomes a hyphen; empty when nothing is left.
#[must_use]
pub fn host_label(name: &str) -> String {
    let label: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).take(63).collect();
    label.trim_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_fit_the_kernel_and_differ_for_similar_ids() {
        let mut seen = BTreeSet::new();
        for n in 0..500_u128 {
            for index in 0..4 {
                let id = Uuid::from_u128(n);
                let names = [tap(id, index), format!("{:?}", app_mac(id, index))];
                assert!(names[0].len() <= 15);
                assert_eq!(app_mac(id, index)[0] & 3, 2);
                assert!(names.into_iter().all(|n| seen.insert(n)));
            }
            assert!(bridge(Uuid::from_u128(n)).len() <= 15);
            assert!(seen.insert(bridge(Uuid::from_u128(n))));
        }
    }

    #[test]
    fn names_are_pinned_because_running_devices_carry_them() {
        let id = Uuid::from_u128;
        assert_eq!(tap(id(11), 0), "tap-8458c21e69");
        assert_eq!(app_mac(id(11), 0), [0x02, 0xe8, 0xfb, 0xda, 0x29, 0x92]);
        assert_eq!(bridge(id(1)), "br-000d560088");
        assert_eq!(table(id(1)), 359_981_824);
    }

    #[test]
    fn display_names_become_labels() {
        assert_eq!(host_label("My Web_App!"), "my-web-app");
        assert_eq!(host_label("!!!"), "");
        assert_eq!(host_label(&"x".repeat(80)).len(), 63);
    }
}
