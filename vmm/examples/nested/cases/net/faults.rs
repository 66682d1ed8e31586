//! Cables that cannot be used, and rings that vhost cannot.

use std::os::fd::OwnedFd;

use holdfast_links::tap as host_tap;
use holdfast_model::contract::vm::{ConsoleConfig, FileRef, LinkRef, NetConfig, TapRef, UnixRef, VhostRef};

use super::{tap, vhost};
use crate::host::{JAIL, Lines, Outcome, config, expect_code, open, pipe, spawn_with, text};

pub(super) fn misused_rings() -> Outcome {
    let mut reasons = Vec::new();
    for (rings, words) in [("text", "vhost found a broken ring"), ("outside", "outside guest memory")] {
        let (reader, writer) = pipe()?;
        let mut config = config("misuse", "net-misuse");
        config.cmdline = format!("{} iomem=relaxed nested.rings={rings}", config.cmdline);
        config.console = Some(ConsoleConfig::to(FileRef::Fd(4)));
        config.jail = JAIL;
        let mac = "02:00:00:00:00:05".parse().map_err(text)?;
        config.nets = vec![NetConfig { vhost: Some(VhostRef::Fd(6)), ..NetConfig::new(mac, TapRef::Fd(5)) }];
        let files: Vec<OwnedFd> = vec![writer.into(), tap("tap-w")?, vhost()?];
        let (mut child, errors) = spawn_with(&config, files)?;
        Lines::of(reader).wait("guest: misuse")?;
        let reason = errors.wait("vmm misuse:")?;
        expect_code(&mut child, 11)?;
        if !reason.contains("net0") || !reason.contains(words) {
            return Err(format!("rings {rings}: {reason}"));
        }
        reasons.push(reason);
    }
    Ok(reasons.join(" | "))
}

/// Descriptors 4 and up, what the configuration says, and words that the one error must have.
type Case = (Vec<OwnedFd>, NetConfig, &'static [&'static str]);

pub(super) fn unusable_cables() -> Outcome {
    let mac = "02:00:00:00:00:06".parse().map_err(text)?;
    let named = |name: &str| NetConfig::new(mac, TapRef::Name(name.into()));
    host_tap::create("tap-held", 1000, false).map_err(text)?;
    let _holder = host_tap::attach("tap-held", 1).map_err(text)?;
    host_tap::create("tap-one", 1000, false).map_err(text)?;
    let cases: Vec<Case> = vec![
        (vec![], named("tap-none"), &["net0", "tap-none", "does not exist", "ip tuntap"]),
        (vec![], named("tap-held"), &["net0", "tap-held", "another program is attached", "a tap of its own"]),
        (vec![], NetConfig { queue_pairs: 2, ..named("tap-one") }, &["net0", "tap-one", "another kind", "multi_queue"]),
        (vec![], named("lo"), &["net0", "lo", "another kind"]),
        (
            vec![],
            NetConfig { vhost: Some(VhostRef::Path("/dev/no-vhost".into())), ..named("tap-one") },
            &["net0", "/dev/no-vhost", "without \"vhost\""],
        ),
        (
            vec![open("/dev/null", true)?.into()],
            NetConfig::new(mac, TapRef::Fd(4)),
            &["net0", "inherited fd 4", "IFF_VNET_HDR"],
        ),
        (
            vec![open("/dev/null", true)?.into()],
            NetConfig::linked(mac, LinkRef::Unix(UnixRef::Fd(4))),
            &["net0", "inherited fd 4", "as a cable"],
        ),
    ];
    let count = cases.len();
    for (files, net, words) in cases {
        let mut config = config("bad", "");
        config.vcpus = 2;
        config.nets = vec![net];
        let (mut child, errors) = spawn_with(&config, files)?;
        let error = errors.wait("vmm bad:")?;
        expect_code(&mut child, 21)?;
        if let Some(word) = words.iter().find(|word| !error.contains(**word)) {
            return Err(format!("{word:?} is not in {error:?}"));
        }
    }
    Ok(format!("{count} cables"))
}
