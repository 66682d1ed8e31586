//! Access rules of an app's virtual NIC. A rule that cannot be understood is a fault of the whole app, since leaving
//! out a rule could open what it was meant to close.

use super::network::{optional_address, prefix};
use super::{limits, quoted, text};
use crate::proto::config::{Ace, AceAction};
use holdfast_model::net::{Prefix, Protocol, RateUnit, Rule, RuleAction};

/// Reads the rules of one interface in order.
pub(super) fn rules(wire: &[Ace]) -> Result<Vec<Rule>, String> {
    if wire.len() > limits::RULES {
        return Err(format!("expected at most {} rules, found {}", limits::RULES, wire.len()));
    }
    wire.iter()
        .map(|ace| rule(ace).map_err(|text| format!("rule {} {:?}: {text}", ace.id, quoted(&ace.name))))
        .collect()
}

fn rule(ace: &Ace) -> Result<Rule, String> {
    let id = u32::try_from(ace.id).ok().filter(|id| *id <= limits::RULE_ID).ok_or("id: expected 0 to 16777215")?;
    let mut rule = Rule {
        id,
        remote: None,
        host: None,
        protocol: None,
        local_port: None,
        remote_port: None,
        adapter: String::new(),
        action: RuleAction::Allow,
    };
    for matching in &ace.matches {
        let value = matching.value.trim();
        match matching.r#type.trim().to_ascii_lowercase().as_str() {
            "ip" => once("ip", &mut rule.remote, ip(value)?)?,
            // Eden's way to say "any host": a match of an empty name.
            "host" if value.is_empty() => {}
            "host" => once("host", &mut rule.host, text::domain("host", value)?.to_ascii_lowercase())?,
            "protocol" => once("protocol", &mut rule.protocol, protocol(value)?)?,
            "lport" => once("lport", &mut rule.local_port, port("lport", value)?)?,
            "fport" => once("fport", &mut rule.remote_port, port("fport", value)?)?,
            "adapter" => rule.adapter = text::name("adapter", value)?,
            other => {
                return Err(format!(
                    "match: expected ip, host, protocol, lport, fport or adapter, found {:?}",
                    quoted(other)
                ));
            }
        }
    }
    let ports = matches!(rule.protocol, Some(Protocol::Tcp | Protocol::Udp));
    if (rule.local_port.is_some() || rule.remote_port.is_some()) && !ports {
        return Err("lport or fport: expected beside protocol tcp or udp".to_owned());
    }
    rule.action = match ace.actions.as_slice() {
        [] => RuleAction::Allow,
        [one] => action(one, &rule)?,
        more => return Err(format!("expected one action, found {}", more.len())),
    };
    Ok(rule)
}

fn action(wire: &AceAction, rule: &Rule) -> Result<RuleAction, String> {
    match (wire.drop, wire.limit, wire.portmap) {
        (false, false, false) => Ok(RuleAction::Allow),
        (true, false, false) => Ok(RuleAction::Drop),
        (false, true, false) => {
            let per = match wire.limitunit.trim().to_ascii_lowercase().as_str() {
                "s" | "sec" | "second" => RateUnit::Second,
                "m" | "min" | "minute" => RateUnit::Minute,
                "h" | "hour" => RateUnit::Hour,
                other => {
                    return Err(format!("limit unit: expected s, m or h, found {:?}", quoted(other)));
                }
            };
            if wire.limitrate == 0 {
                return Err("limit rate: expected at least 1, found 0".to_owned());
            }
            Ok(RuleAction::Limit { rate: wire.limitrate, per, burst: wire.limitburst })
        }
        (false, false, true) => {
            let app_port = u16::try_from(wire.app_port).ok().filter(|port| *port != 0);
            let app_port = app_port.ok_or_else(|| {
                format!("port map: expected a port of the app from 1 to 65535, found {}", wire.app_port)
            })?;
            if rule.local_port.is_none() {
                return Err("port map: expected a match of type lport, found none".to_owned());
            }
            Ok(RuleAction::PortMap { app_port })
        }
        _ => Err("expected one of drop, limit and portmap, found several".to_owned()),
    }
}

fn once<T>(what: &str, place: &mut Option<T>, value: T) -> Result<(), String> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("expected one match of type {what}, found two")),
    }
}

fn ip(value: &str) -> Result<Prefix, String> {
    if value.contains('/') {
        return prefix("ip", value);
    }
    let address = optional_address("ip", value)?.ok_or("ip: expected an address or prefix, found none")?;
    Ok(Prefix { address, length: if address.is_ipv4() { 32 } else { 128 } })
}

fn protocol(value: &str) -> Result<Protocol, String> {
    match value.to_ascii_lowercase().as_str() {
        "tcp" | "6" => Ok(Protocol::Tcp),
        "udp" | "17" => Ok(Protocol::Udp),
        "icmp" | "1" => Ok(Protocol::Icmp),
        number => number
            .parse()
            .map(Protocol::Number)
            .map_err(|_| format!("protocol: expected tcp, udp, icmp or 0 to 255, found {:?}", quoted(value))),
    }
}

fn port(what: &str, value: &str) -> Result<u16, String> {
    value
        .parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("{what}: expected a port from 1 to 65535, found {:?}", quoted(value)))
}
