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
    parse(&text).with_context(|| path.display().to_string())
}

fn parse(text: &str) -> Result<BTreeMap<String, u64>> {
    let mut table = BTreeMap::new();
    for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let fields: Vec<&str> = line.split('\t').collect();
        let (&[name, limit, reason], Some(bytes)) = (&fields[..], fields.get(1).and_then(|n| n.parse().ok())) else {
            bail!("expected name<TAB>bytes<TAB>reason, found {line:?}");
        };
        if name.is_empty() || reason.is_empty() || bytes == 0 {
            bail!("expected a name, a limit above 0 and a reason, found {line:?}");
        }
        if table.insert(name.to_owned(), bytes).is_some() {
            bail!("expected one limit for {name}, found a second one: {limit}");
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What is measured somewhere: sizes by `assemble`, memory by the scenarios.
    const KNOWN: [&str; 7] =
        ["uki", "os-slot-host", "pid1", "vmm", "memory-host-idle", "memory-pid1", "memory-vmm-overhead"];

    #[test]
    fn the_committed_table_is_read_and_limits_only_what_is_measured() {
        let table = limits().unwrap();
        for name in table.keys() {
            assert!(KNOWN.contains(&name.as_str()), "{name} is limited, but nothing measures it");
        }
        for name in KNOWN {
            assert!(table.contains_key(name), "{name} is measured, but has no limit");
        }
    }

    #[test]
    fn lines_that_say_something_else_are_refused() {
        assert_eq!(parse("# c\n\na\t5\twhy\n").unwrap(), BTreeMap::from([("a".to_owned(), 5)]));
        for text in ["a\t5", "a\tmany\twhy", "a\t0\twhy", "\t5\twhy", "a\t5\twhy\na\t6\twhy", "a 5 why"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_is_over_its_budget_is_named_with_both_numbers() {
        let limit = limits().unwrap()["uki"];
        check(&BTreeMap::from([("uki".to_owned(), limit), ("not-limited".to_owned(), u64::MAX)])).unwrap();
        let error = check(&BTreeMap::from([("uki".to_owned(), limit + 1)])).unwrap_err().to_string();
        assert!(error.contains(&format!("uki: {} bytes, budget {limit}", limit + 1)), "{error}");
    }
}
