//! Feature bits of a network card (virtio 1.3 §5.1.3): which are offered, what each needs, what they mean to a cable.

use holdfast_links::Offloads;
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};

/// Mask of a bit number.
const fn bit(number: u32) -> u64 {
    1 << number
}

pub(super) const MRG_RXBUF: u64 = bit(VIRTIO_NET_F_MRG_RXBUF);
pub(super) const GUEST_CSUM: u64 = bit(VIRTIO_NET_F_GUEST_CSUM);
pub(super) const CTRL_VQ: u64 = bit(VIRTIO_NET_F_CTRL_VQ);
pub(super) const MQ: u64 = bit(VIRTIO_NET_F_MQ);

/// A bit, its name, and the bits of which it needs at least one (virtio 1.3 §5.1.3.1).
struct Rule(u32, &'static str, u64);

const HOST_TSO: u64 = bit(VIRTIO_NET_F_HOST_TSO4) | bit(VIRTIO_NET_F_HOST_TSO6);
const GUEST_TSO: u64 = bit(VIRTIO_NET_F_GUEST_TSO4) | bit(VIRTIO_NET_F_GUEST_TSO6);
const CSUM: u64 = bit(VIRTIO_NET_F_CSUM);

/// Every bit that this card may offer, beside those of every device.
const RULES: [Rule; 17] = [
    Rule(VIRTIO_NET_F_CSUM, "CSUM", 0),
    Rule(VIRTIO_NET_F_GUEST_CSUM, "GUEST_CSUM", 0),
    Rule(VIRTIO_NET_F_MTU, "MTU", 0),
    Rule(VIRTIO_NET_F_MAC, "MAC", 0),
    Rule(VIRTIO_NET_F_GUEST_TSO4, "GUEST_TSO4", GUEST_CSUM),
    Rule(VIRTIO_NET_F_GUEST_TSO6, "GUEST_TSO6", GUEST_CSUM),
    Rule(VIRTIO_NET_F_GUEST_ECN, "GUEST_ECN", GUEST_TSO),
    Rule(VIRTIO_NET_F_HOST_TSO4, "HOST_TSO4", CSUM),
    Rule(VIRTIO_NET_F_HOST_TSO6, "HOST_TSO6", CSUM),
    Rule(VIRTIO_NET_F_HOST_ECN, "HOST_ECN", HOST_TSO),
    Rule(VIRTIO_NET_F_MRG_RXBUF, "MRG_RXBUF", 0),
    Rule(VIRTIO_NET_F_STATUS, "STATUS", 0),
    Rule(VIRTIO_NET_F_CTRL_VQ, "CTRL_VQ", 0),
    Rule(VIRTIO_NET_F_MQ, "MQ", CTRL_VQ),
    Rule(VIRTIO_NET_F_GUEST_USO4, "GUEST_USO4", GUEST_CSUM),
    Rule(VIRTIO_NET_F_GUEST_USO6, "GUEST_USO6", GUEST_CSUM),
    Rule(VIRTIO_NET_F_HOST_USO, "HOST_USO", CSUM),
];

/// What a card with this cable, number of pairs and MTU offers, beside what every device does.
pub(super) fn offered(cable: Offloads, pairs: u16, mtu: bool) -> u64 {
    RULES
        .iter()
        .map(|Rule(number, ..)| *number)
        .filter(|number| match *number {
            VIRTIO_NET_F_CSUM | VIRTIO_NET_F_GUEST_CSUM => cable.checksum,
            VIRTIO_NET_F_GUEST_TSO4 | VIRTIO_NET_F_HOST_TSO4 => cable.tso4,
            VIRTIO_NET_F_GUEST_TSO6 | VIRTIO_NET_F_HOST_TSO6 => cable.tso6,
            VIRTIO_NET_F_GUEST_ECN | VIRTIO_NET_F_HOST_ECN => cable.ecn,
            VIRTIO_NET_F_GUEST_USO4 | VIRTIO_NET_F_GUEST_USO6 | VIRTIO_NET_F_HOST_USO => cable.uso,
            VIRTIO_NET_F_MTU => mtu,
            VIRTIO_NET_F_CTRL_VQ | VIRTIO_NET_F_MQ => pairs > 1,
            _ => true,
        })
        .fold(0, |all, number| all | bit(number))
}

/// The first rule that the driver's choice breaks, in words.
pub(super) fn broken_rule(accepted: u64) -> Option<String> {
    let name_of = |mask: u64| RULES.iter().find(|Rule(number, ..)| bit(*number) & mask != 0).map_or("", |rule| rule.1);
    RULES
        .iter()
        .find(|Rule(number, _, needs)| accepted & bit(*number) != 0 && *needs != 0 && accepted & needs == 0)
        .map(|Rule(_, name, needs)| format!("driver accepted {name} without {}", name_of(*needs)))
}

/// What the driver takes over of frames that it receives.
pub(super) fn guest_offloads(accepted: u64) -> Offloads {
    let has = |number: u32| accepted & bit(number) != 0;
    Offloads {
        checksum: has(VIRTIO_NET_F_GUEST_CSUM),
        tso4: has(VIRTIO_NET_F_GUEST_TSO4),
        tso6: has(VIRTIO_NET_F_GUEST_TSO6),
        ecn: has(VIRTIO_NET_F_GUEST_ECN),
        // A tap knows only both together.
        uso: has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offloads = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: true };

    #[test]
    fn what_is_offered_keeps_the_rules_for_every_cable() {
        for bits in 0..64u32 {
            let on = |n: u32| bits & 1 << n != 0;
            // A cable that segments also does checksums, and ECN is a kind of segmentation.
            let (checksum, tso4, uso) = (on(0), on(0) && on(1), on(0) && on(2));
            let cable = Offloads { checksum, tso4, tso6: tso4, ecn: tso4, uso };
            let offered = offered(cable, if on(3) { 4 } else { 1 }, on(4));
            assert_eq!(broken_rule(offered), None);
            assert_eq!(guest_offloads(offered), cable);
            assert_eq!(offered & (MQ | CTRL_VQ) != 0, on(3));
        }
    }

    #[test]
    fn broken_rules_are_named() {
        let all = offered(ALL, 2, true);
        for (without, words) in [
            (GUEST_CSUM, "GUEST_TSO4 without GUEST_CSUM"),
            (CSUM, "HOST_TSO4 without CSUM"),
            (CTRL_VQ, "MQ without CTRL_VQ"),
            (GUEST_TSO, "GUEST_ECN without GUEST_TSO4"),
        ] {
            let reason = broken_rule(all & !without).unwrap();
            assert!(reason.contains(words), "{reason}");
        }
        assert_eq!(broken_rule(0), None);
    }

    #[test]
    fn one_kind_of_udp_segmentation_alone_is_none() {
        let all = offered(ALL, 1, false);
        assert!(!guest_offloads(all & !bit(VIRTIO_NET_F_GUEST_USO6)).uso);
    }
}
