//! `netsvc --config-fd N`: reads its configuration, closes its cage, serves until it is stopped.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use holdfast_model::contract::network::ServiceDocument;
use holdfast_model::contract::{self, Document as _};
use holdfast_netsvc::{sandbox, service, sys};
use std::fs::File;
use std::io::{Read, Seek};

fn main() -> Result<()> {
    let config = read_config()?;
    sandbox::enter().context("sandbox")?;
    service::run(config).context("service")?;
    Ok(())
}

fn read_config() -> Result<ServiceDocument> {
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
    let mut text = Vec::new();
    file.take(ServiceDocument::MAX_BYTES as u64 + 1).read_to_end(&mut text).context("read configuration")?;
    Ok(contract::read(&text)?)
}
