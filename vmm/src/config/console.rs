//! The virtio console: names of its ports.

use std::collections::HashSet;

use holdfast_model::contract::vm::ConsoleConfig;

use super::{ConfigError, range};
use crate::virtio::console::MAX_PORTS;

/// Checks the console, called `name` in messages.
pub(super) fn validate(console: &ConsoleConfig, name: &str) -> Result<(), ConfigError> {
    let most = MAX_PORTS - 1;
    range(&format!("{name}.ports"), &console.ports.len(), &format!("at most {most}"), console.ports.len() <= most)?;
    let mut names = HashSet::from(["console", "serial"]);
    for (n, port) in console.ports.iter().enumerate() {
        range(
            &format!("{name}.ports[{n}].name"),
            &format!("{:?}", port.name),
            "1 to 64 printable ASCII characters without '/', unique, neither \"console\" nor \"serial\"",
            {
                (1..=64).contains(&port.name.len())
                    && port.name.bytes().all(|c| c.is_ascii_graphic() && c != b'/')
                    && names.insert(port.name.as_str())
            },
        )?;
    }
    Ok(())
}
