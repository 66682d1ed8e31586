//! Configurations that name what is not there.

use holdfast_vmm::config::{NetConfig, TapRef};

use crate::host::{Outcome, Scenario, config, expect_code, spawn_with, text};

pub const SCENARIOS: &[Scenario] = &[Scenario { name: "missing_tap_is_named_and_leaves_nothing", run: missing_tap }];

fn missing_tap() -> Outcome {
    let mut config = config("bad", "");
    let mac = "02:00:00:00:00:04".parse().map_err(text)?;
    config.nets = vec![NetConfig::new(mac, TapRef::Fd(77))];
    let (mut child, errors) = spawn_with(&config, vec![])?;
    let reason = errors.wait("vmm bad: net0:")?;
    expect_code(&mut child, 21)?;
    Ok(reason)
}
