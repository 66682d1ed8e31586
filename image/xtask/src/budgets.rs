//! Size budgets, in one committed table (`docs/budgets.tsv`), and the check that holds them.

use crate::workspace::root;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The table: name and limit in bytes.
///
/// # Errors
/// When the file is missing or malformed.
pub fn limits() -> Result<BTreeMap<String, u64>> {
    let path = root().join("docs/budgets.tsv");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut table = BTreeMap::new();
    for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let mut fields = line.split('\t');
        let (Some(name), Some(limit)) = (fields.next(), fields.next().and_then(|n| n.parse().ok())) else {
            bail!("{}: expected name<TAB>bytes<TAB>reason, found {line:?}", path.display());
        };
        table.insert(name.to_owned(), limit);
    }
    Ok(table)
}

/// A table of sizes against their budgets.
///
/// # Errors
/// When the table of budgets cannot be read.
pub fn table(sizes: &BTreeMap<String, u64>) -> Result<String> {
    let limits = limits()?;
    let mut text = format!("{:24} {:>12} {:>12} {:>6}\n", "what", "bytes", "budget", "used");
    for (name, bytes) in sizes {
        match limits.get(name) {
            Some(limit) => writeln!(text, "{name:24} {bytes:>12} {limit:>12} {:>5}%", bytes * 100 / limit)?,
            None => writeln!(text, "{name:24} {bytes:>12} {:>12}", "-")?,
        }
    }
    Ok(text)
}

/// Fails when a budget is exceeded, naming each.
///
/// # Errors
/// The list of what is too large.
pub fn check(sizes: &BTreeMap<String, u64>) -> Result<()> {
    let limits = limits()?;
    let over: Vec<String> = sizes
        .iter()
        .filter_map(|(name, bytes)| {
            limits.get(name).filter(|l| *bytes > **l).map(|l| format!("{name}: {bytes} bytes, budget {l}"))
        })
        .collect();
    if over.is_empty() { Ok(()) } else { bail!("over budget:\n  {}", over.join("\n  ")) }
}
