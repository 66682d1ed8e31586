//! Software bill of materials: SPDX 2.3 JSON of everything that is in an image.

use crate::kernel::KernelArtifacts;
use crate::workspace::{root, run};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Cargo packages whose programs are in the image.
const ROOTS: &[&str] =
    &["holdfast-pid1", "holdfast-node", "holdfast-fetch", "holdfast-netsvc", "holdfast-vmm", "holdfast-guest"];
/// Debian binary packages of which files are in the image.
const DEBIAN: &[&str] = &[
    "libc6",
    "libgcc-s1",
    "libssl3",
    "libtss2-esys-3.0.2-0",
    "libtss2-sys1",
    "libtss2-mu0",
    "libtss2-tctildr0",
    "libtss2-tcti-device0",
    "systemd-boot-efi",
];

/// Writes the document.
///
/// # Errors
/// When cargo or dpkg cannot tell what is there.
pub fn write(path: &Path, version: &str, kernel: &KernelArtifacts) -> Result<()> {
    let mut packages = vec![json!({
        "SPDXID": "SPDXRef-image", "name": "holdfast", "versionInfo": version, "downloadLocation": "NOASSERTION",
        "licenseConcluded": "NOASSERTION", "licenseDeclared": "Apache-2.0", "supplier": "NOASSERTION", "filesAnalyzed": false,
    })];
    packages.push(package(
        "linux",
        &kernel.source_version,
        "GPL-2.0-only",
        &format!("pkg:deb/debian/{}@{}", crate::kernel::SOURCE_PACKAGE, kernel.source_version),
    ));
    for name in DEBIAN {
        let found = run(Command::new("dpkg-query").args(["-W", "-f", "${Version}", name])).unwrap_or_default();
        if !found.is_empty() {
            packages.push(package(name, &found, "NOASSERTION", &format!("pkg:deb/debian/{name}@{found}")));
        }
    }
    for (name, version, license) in crates()? {
        packages.push(package(&name, &version, &license, &format!("pkg:cargo/{name}@{version}")));
    }
    let relationships: Vec<Value> = packages[1..]
        .iter()
        .map(|p| json!({"spdxElementId": "SPDXRef-image", "relationshipType": "CONTAINS", "relatedSpdxElement": p["SPDXID"]}))
        .collect();
    let body = serde_json::to_vec(&packages)?;
    let document = json!({
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": format!("holdfast-{version}"),
        // Derived from the content, so that two builds of one commit give the same document.
        "documentNamespace": format!("urn:holdfast:sbom:{}", hex::encode(Sha256::digest(&body))),
        "creationInfo": {"created": "2025-01-01T00:00:00Z", "creators": ["Tool: holdfast-xtask"]},
        "documentDescribes": ["SPDXRef-image"], "packages": packages, "relationships": relationships,
    });
    std::fs::write(path, serde_json::to_vec_pretty(&document)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// An SPDX identifier: letters, digits, `.` and `-` only (SPDX 2.3, 7.2). Every other byte is written out in hex, so that two
/// packages never get one identifier.
fn id(purl: &str) -> String {
    let mut text = "SPDXRef-".to_owned();
    for c in purl.trim_start_matches("pkg:").chars() {
        match c {
            '/' | '@' => text.push('-'),
            '.' | '-' => text.push(c),
            c if c.is_ascii_alphanumeric() => text.push(c),
            c => text.push_str(&format!("-{:x}-", u32::from(c))),
        }
    }
    text
}

fn package(name: &str, version: &str, license: &str, purl: &str) -> Value {
    let license = if license.is_empty() { "NOASSERTION" } else { license };
    json!({
        "SPDXID": id(purl),
        "name": name, "versionInfo": version, "downloadLocation": "NOASSERTION", "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION", "licenseDeclared": license.replace('/', " OR "), "supplier": "NOASSERTION",
        "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl}],
    })
}

/// Name, version and licence of every crate that is linked into a program of the image.
fn crates() -> Result<BTreeSet<(String, String, String)>> {
    let text = run(Command::new("cargo").current_dir(root()).args([
        "metadata",
        "--format-version",
        "1",
        "--locked",
        "--filter-platform",
        crate::programs::TARGET,
    ]))?;
    let data: Value = serde_json::from_str(&text)?;
    let empty = Vec::new();
    let packages: BTreeMap<&str, &Value> =
        data["packages"].as_array().unwrap_or(&empty).iter().filter_map(|p| Some((p["id"].as_str()?, p))).collect();
    let nodes: BTreeMap<&str, &Value> = data["resolve"]["nodes"]
        .as_array()
        .unwrap_or(&empty)
        .iter()
        .filter_map(|n| Some((n["id"].as_str()?, n)))
        .collect();
    let mut queue: Vec<&str> = packages
        .iter()
        .filter(|(_, p)| p["name"].as_str().is_some_and(|n| ROOTS.contains(&n)))
        .map(|(id, _)| *id)
        .collect();
    let mut seen = BTreeSet::new();
    let mut found = BTreeSet::new();
    while let Some(id) = queue.pop() {
        if !seen.insert(id) {
            continue;
        }
        if let Some(p) = packages.get(id) {
            let field = |key: &str| p[key].as_str().unwrap_or_default().to_owned();
            found.insert((field("name"), field("version"), field("license")));
        }
        let normal = |d: &&Value| d["dep_kinds"].as_array().is_some_and(|k| k.iter().any(|k| k["kind"].is_null()));
        queue.extend(
            nodes
                .get(id)
                .and_then(|n| n["deps"].as_array())
                .unwrap_or(&empty)
                .iter()
                .filter(normal)
                .filter_map(|d| d["pkg"].as_str()),
        );
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_have_only_characters_that_spdx_allows() {
        assert_eq!(id("pkg:cargo/ring@0.17.8"), "SPDXRef-cargo-ring-0.17.8");
        assert_eq!(id("pkg:deb/debian/libc6@2.36-9+deb12u9"), "SPDXRef-deb-debian-libc6-2.36-9-2b-deb12u9");
        assert_ne!(id("pkg:deb/debian/a@1+b"), id("pkg:deb/debian/a@1-b"));
        assert_ne!(id("pkg:deb/debian/a@1_b"), id("pkg:deb/debian/a@1:b"));
    }

    #[test]
    fn every_crate_of_the_image_has_its_own_identifier_and_a_licence() {
        let found = crates().unwrap();
        let has = |name: &str| found.iter().any(|(n, _, _)| n == name);
        assert!(ROOTS.iter().all(|r| has(r)), "expected the programs of the image, found {found:?}");
        assert!(has("rustls") && !has("proptest") && !has("xtask"), "expected what is linked in, and no more");
        let mut ids = BTreeSet::new();
        for (name, version, license) in &found {
            let value = package(name, version, license, &format!("pkg:cargo/{name}@{version}"));
            let id = value["SPDXID"].as_str().unwrap().to_owned();
            let valid = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
            assert!(id.strip_prefix("SPDXRef-").unwrap().chars().all(valid), "{id}");
            assert!(ids.insert(id.clone()), "expected one package with identifier {id}, found two");
            let declared = value["licenseDeclared"].as_str().unwrap();
            assert!(!declared.contains('/') && declared != "NOASSERTION", "{name}: licence {declared:?}");
        }
    }
}
