//! `netsvc --config-fd N`: reads its configuration, closes its cage, serves until it is stopped.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use holdfast_netsvc::{config::Config, sandbox, service, sys};
use std::fs::File;
use std::io::{Read, Seek};

/// Largest configuration document.
const MAX_CONFIG: u64 = 1 << 20;

fn main() -> Result<()> {
    let config = read_config()?;
    sandbox::enter().context("sandbox")?;
    service::run(config).context("service")?;
    Ok(())
}

fn read_config() -> Result<Config> {
    let mut args = std::env::args().skip(1);
    let (Some(flag), Some(fd), None) = (args.next(), args.next(), args.next()) else {
        bail!("usage: netsvc --config-fd N");
    };
    if flag != "--config-fd" {
        bail!("unknown option {flag:?}; usage: netsvc --config-fd N");
    }
    let fd: i32 = fd.parse().with_context(|| format!("--config-fd {fd:?} is no number"))?;
    let mut file = File::from(sys::inherit(fd).with_context(|| format!("--config-fd {fd}"))?);
    // A memfd comes with its offset behind what was written.
    let _ = file.rewind();
    let mut text = String::new();
    file.take(MAX_CONFIG).read_to_string(&mut text).context("read configuration")?;
    serde_json::from_str(&text).context("configuration document")
}
