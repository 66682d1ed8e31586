//! What `cargo fuzz` wants to find in `fuzz/`: a program and a section of `Cargo.toml` for each target, and its seeds. All of
//! it is made from the table (`fuzz-one --programs`), and a test compares.

use crate::targets::{TARGETS, Target};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// The line of `fuzz/Cargo.toml` after which everything is made.
const MARK: &str = "# From here on made by `cargo run -p holdfast-fuzz --bin fuzz-one -- --programs`.\n";

/// `fuzz/` of the tree that this was built from.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// The program of a target.
fn program(name: &str) -> String {
    format!(
        "#![no_main]\n\nlibfuzzer_sys::fuzz_target!(|data: &[u8]| holdfast_fuzz::targets::run(\"{name}\", data));\n"
    )
}

/// `Cargo.toml` with the sections of all targets behind its mark.
fn manifest(found: &str, targets: &[Target]) -> io::Result<String> {
    let (head, _) = found.split_once(MARK).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("fuzz/Cargo.toml: expected a line {MARK:?}"))
    })?;
    let sections = targets.iter().map(|target| {
        let name = target.name;
        format!(
            "\n[[bin]]\nname = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"\ntest = false\nbench = false\ndoc = false\n"
        )
    });
    Ok(head.to_owned() + MARK + &sections.collect::<String>())
}

/// Each file as it should be, by its path in `folder`.
fn wanted(folder: &Path) -> io::Result<BTreeMap<PathBuf, String>> {
    let mut files: BTreeMap<_, _> = TARGETS
        .iter()
        .map(|target| (Path::new("fuzz_targets").join(format!("{}.rs", target.name)), program(target.name)))
        .collect();
    let cargo = PathBuf::from("Cargo.toml");
    let manifest = manifest(&std::fs::read_to_string(folder.join(&cargo))?, TARGETS)?;
    files.insert(cargo, manifest);
    Ok(files)
}

/// Programs in `folder` that belong to no target.
fn foreign(folder: &Path, wanted: &BTreeMap<PathBuf, String>) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder.join("fuzz_targets"))? {
        let path = Path::new("fuzz_targets").join(entry?.file_name());
        if !wanted.contains_key(&path) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Makes the programs and sections in `folder` what the table says.
///
/// # Errors
/// When a file cannot be read or written, or `Cargo.toml` has lost its mark.
pub fn write_programs(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder.join("fuzz_targets"))?;
    let wanted = wanted(folder)?;
    for path in foreign(folder, &wanted)? {
        std::fs::remove_file(folder.join(path))?;
    }
    wanted.iter().try_for_each(|(path, text)| std::fs::write(folder.join(path), text))
}

/// Writes a target's seeds as files.
///
/// # Errors
/// When `folder` cannot be written.
pub fn write_seeds(target: &Target, folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (n, seed) in (target.seeds)().iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{n}")), seed)?;
    }
    Ok(())
}

/// Writes all targets' seeds where `cargo fuzz` looks for them, `corpus/TARGET/` in `folder`.
///
/// # Errors
/// As [`write_seeds`].
pub fn write_corpus(folder: &Path) -> io::Result<()> {
    TARGETS.iter().try_for_each(|target| write_seeds(target, &folder.join("corpus").join(target.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_its_program_for_cargo_fuzz_and_every_program_its_target() {
        let folder = folder();
        let wanted = wanted(&folder).unwrap();
        let mut wrong = foreign(&folder, &wanted).unwrap();
        for (path, text) in &wanted {
            if std::fs::read_to_string(folder.join(path)).ok().as_ref() != Some(text) {
                wrong.push(path.clone());
            }
        }
        assert!(
            wrong.is_empty(),
            "not what the table says: {wrong:?}: run `cargo run -p holdfast-fuzz --bin fuzz-one -- --programs`"
        );
    }

    #[test]
    fn programs_that_are_missing_or_too_many_are_put_right() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("fuzz_targets")).unwrap();
        std::fs::write(folder.path().join("fuzz_targets/gone.rs"), "").unwrap();
        std::fs::write(folder.path().join("Cargo.toml"), "no mark").unwrap();
        assert!(write_programs(folder.path()).unwrap_err().to_string().contains("expected a line"));
        std::fs::write(folder.path().join("Cargo.toml"), format!("[package]\n{MARK}[[bin]]\nname = \"gone\"\n"))
            .unwrap();
        write_programs(folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path().join("fuzz_targets")).unwrap().count(), TARGETS.len());
        let manifest = std::fs::read_to_string(folder.path().join("Cargo.toml")).unwrap();
        assert!(manifest.starts_with("[package]\n") && !manifest.contains("gone"), "{manifest}");
        assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
    }

    #[test]
    fn seeds_are_files_where_cargo_fuzz_looks() {
        let folder = tempfile::tempdir().unwrap();
        write_corpus(folder.path()).unwrap();
        let target = crate::targets::find("vmm_block").unwrap();
        let first = std::fs::read(folder.path().join("corpus/vmm_block/seed-0")).unwrap();
        assert_eq!(first, (target.seeds)()[0]);
    }
}
