//! Who may depend on whom (`docs/design.md` §2), checked against what cargo says.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

/// Crates that are programs: what others need of them is in `model::contract`.
const PROGRAMS: [&str; 6] =
    ["holdfast-vmm", "holdfast-netsvc", "holdfast-fetch", "holdfast-guest", "holdfast-pid1", "holdfast-node"];
/// Crates that may link a program: they test it from outside.
const TESTERS: [&str; 2] = ["holdfast-fuzz", "holdfast-scenarios"];
/// Rooms of the workspace that a crate may link, where that is fewer than "no program".
const ONLY: [(&str, &[&str]); 3] = [
    ("holdfast-model", &[]),
    ("holdfast-links", &[]),
    ("holdfast-vmm", &["holdfast-links", "holdfast-model", "holdfast-unit"]),
];
/// Programs that stay small and synchronous.
const WITHOUT_TOKIO: [&str; 4] = ["holdfast-pid1", "holdfast-vmm", "holdfast-netsvc", "holdfast-guest"];

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .args(["--offline", "--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml")])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo writes UTF-8")
}

/// Each crate of the workspace with the rooms that it links (not those of its tests).
fn arrows() -> Vec<(String, BTreeSet<String>)> {
    let metadata: Value = serde_json::from_str(&cargo(&["metadata", "--no-deps", "--format-version", "1"])).unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let packages = metadata["packages"].as_array().unwrap();
    let all = packages.iter().map(|package| {
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        let linked = dependencies.filter(|d| d["kind"].is_null() && d["path"].is_string()).map(name).collect();
        (name(package), linked)
    });
    all.collect()
}

#[test]
fn nobody_links_a_program_but_its_testers() {
    let arrows = arrows();
    for program in PROGRAMS {
        assert!(arrows.iter().any(|(name, _)| name == program), "{program} is no crate of the workspace");
    }
    for (name, linked) in arrows {
        let forbidden: Vec<_> = PROGRAMS.iter().filter(|program| linked.contains(**program)).collect();
        assert!(
            forbidden.is_empty() || TESTERS.contains(&name.as_str()),
            "{name} links {forbidden:?}: expected what it needs of them in holdfast_model::contract"
        );
    }
}

#[test]
fn rooms_at_the_bottom_link_only_what_is_below_them() {
    let arrows = arrows();
    for (room, allowed) in ONLY {
        let (_, linked) = arrows.iter().find(|(name, _)| name == room).expect(room);
        let others: Vec<_> = linked.iter().filter(|name| !allowed.contains(&name.as_str())).collect();
        assert!(others.is_empty(), "{room} links {others:?}, expected only {allowed:?}");
    }
}

#[test]
fn small_programs_link_no_tokio() {
    for program in WITHOUT_TOKIO {
        let tree = cargo(&["tree", "-p", program, "-e", "normal", "--prefix", "none"]);
        let found = tree.lines().find(|line| line.starts_with("tokio "));
        assert_eq!(found, None, "{program} links tokio: see `cargo tree -p {program} -i tokio`");
    }
}
