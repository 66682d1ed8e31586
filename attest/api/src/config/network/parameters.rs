//! IP parameter sets (`NetworkConfig`), which adapters refer to.

use super::{Faults, Named, ObjectKind, addresses, mtu, optional_address, prefix, read_all, text, uuid};
use crate::proto::common::{DhcpType, NetworkType, ProxyConfig};
use crate::proto::config::{EdgeDevConfig, NetworkConfig, WirelessConfig};
use holdfast_model::Uuid;
use holdfast_model::net::Prefix;
use std::net::IpAddr;

/// An IP parameter set.
pub(super) struct Parameters {
    pub(super) id: Uuid,
    pub(super) means: Means,
    /// Name servers as configured.
    pub(super) dns: Vec<IpAddr>,
    /// Search domain as configured.
    pub(super) domain: String,
    pub(super) mtu: Option<u16>,
}

/// How addresses come.
pub(super) enum Means {
    /// Not at all.
    None,
    /// From the network, in the versions of IP that are wanted.
    Automatic { v4: bool, v6: bool },
    /// From the config.
    Static { subnet: Prefix, gateway: Option<IpAddr> },
}

pub(super) fn read(config: &EdgeDevConfig, faults: &mut Faults) -> Vec<Parameters> {
    let networks = read_all(
        ObjectKind::Network,
        &config.networks,
        faults,
        |wire| Named { id: &wire.id, name: &wire.id },
        |wire| parameters(wire).map(Some),
    );
    for wire in &config.networks {
        for text in unsupported(wire) {
            faults.warn(ObjectKind::Network, &wire.id, &wire.id, text);
        }
    }
    networks
}

/// What is named and left out, while the rest is used, since it may still reach the controller.
fn unsupported(wire: &NetworkConfig) -> Vec<&'static str> {
    let mut texts = Vec::new();
    if wire.ent_proxy.as_ref().is_some_and(|proxy| *proxy != ProxyConfig::default()) {
        texts.push("proxies are not supported by this version; the network is used without one");
    }
    if wire.wireless.as_ref().is_some_and(|wireless| *wireless != WirelessConfig::default()) {
        texts.push("wireless is not supported by this version; its settings are not used");
    }
    let ip = wire.ip.clone().unwrap_or_default();
    if ip.dhcp() != DhcpType::Static && !(ip.subnet.is_empty() && ip.gateway.is_empty()) {
        texts.push("ip.subnet, ip.gateway: only used with static addresses; ignored");
    }
    if matches!(ip.dhcp(), DhcpType::DhcpNone | DhcpType::DhcpNoop) && !(ip.dns.is_empty() && ip.domain.is_empty()) {
        texts.push("ip.dns, ip.domain: only used with addresses; ignored");
    }
    texts
}

fn parameters(wire: &NetworkConfig) -> Result<Parameters, String> {
    let id = uuid("id", &wire.id)?;
    let ip = wire.ip.clone().unwrap_or_default();
    let means = match DhcpType::try_from(ip.dhcp) {
        Ok(DhcpType::Client) => match NetworkType::try_from(wire.r#type) {
            Ok(NetworkType::V4Only) => Means::Automatic { v4: true, v6: false },
            Ok(NetworkType::V6Only) => Means::Automatic { v4: false, v6: true },
            // 4 and 6 say which version is preferred (EVE's DEVICE-CONNECTIVITY.md).
            _ => Means::Automatic { v4: true, v6: true },
        },
        Ok(DhcpType::DhcpNone | DhcpType::DhcpNoop) => Means::None,
        Ok(DhcpType::Static) => Means::Static {
            subnet: prefix("subnet", &ip.subnet)?,
            gateway: optional_address("gateway", &ip.gateway)?.filter(|gateway| !gateway.is_unspecified()),
        },
        Err(_) => {
            return Err(format!(
                "dhcp: expected 0 none, 1 static, 2 none or 4 client, found {}; the network is not used",
                ip.dhcp
            ));
        }
    };
    let dns = match means {
        Means::None => Vec::new(),
        _ => addresses("dns", &ip.dns)?,
    };
    Ok(Parameters { id, means, dns, domain: text::domain("domain", &ip.domain)?, mtu: mtu(wire.mtu)? })
}
