//! The host's resolver: a file.

use super::{Actuator, Sight};
use crate::driver::{DriverError, NetDriver, Services};
use crate::error::NetlinkError;
use holdfast_plan::kinds::{ItemKey, NetItem, Resolver};
use std::io::Write;
use std::path::Path;

impl Actuator for Resolver {
    async fn ensure<S: Services>(&self, _: Option<&Self>, driver: &NetDriver<S>) -> Result<(), DriverError> {
        write_file(&driver.resolver, &self.text())
    }

    async fn remove<S: Services>(&self, driver: &NetDriver<S>) -> Result<(), DriverError> {
        write_file(&driver.resolver, "")
    }

    async fn found<S: Services>(sight: &Sight<'_, S>) -> Result<Vec<Self>, NetlinkError> {
        let Some(NetItem::Resolver(wanted)) = sight.intended.get(&ItemKey::Resolver(())) else {
            return Ok(Vec::new());
        };
        let text = std::fs::read_to_string(&sight.driver.resolver);
        Ok(if text.is_ok_and(|t| t == wanted.text()) { vec![wanted.clone()] } else { Vec::new() })
    }
}

/// Replaces a file in one step, so that a reader never sees half of it.
fn write_file(path: &Path, text: &str) -> Result<(), DriverError> {
    let attempt = || -> std::io::Result<()> {
        let fresh = path.with_extension("new");
        let mut file = std::fs::File::create(&fresh)?;
        file.write_all(text.as_bytes())?;
        std::fs::rename(&fresh, path)
    };
    attempt().map_err(|source| DriverError::File { path: path.to_owned(), source })
}
