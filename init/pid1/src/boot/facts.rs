//! What PID 1 alone could see, written where `node` reads it.
#![forbid(unsafe_code)]

use holdfast_model::boot::BootFacts;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The directory, in memory.
pub const DIR: &str = "/run/holdfast/boot";
/// Where control sockets of units are made.
pub const CONTROL_DIR: &str = "/run/holdfast/ctl";
/// What systemd-stub leaves in the initramfs for us to hand on.
const FROM_STUB: [&str; 2] = ["tpm2-pcr-signature.json", "tpm2-pcr-public-key.pem"];

/// Makes the directories, and copies what the stub left; names what it did not leave.
pub fn prepare() -> io::Result<Vec<&'static str>> {
    fs::create_dir_all(DIR)?;
    fs::create_dir_all(CONTROL_DIR)?;
    let copy = |name: &&str| fs::copy(format!("/.extra/{name}"), format!("{DIR}/{name}")).is_err();
    Ok(FROM_STUB.into_iter().filter(copy).collect())
}

/// The SITE document as it was measured.
pub fn write_site(document: &[u8]) -> io::Result<()> {
    write_secret(&Path::new(DIR).join("site.json"), document)
}

/// The facts.
pub fn write_facts(facts: &BootFacts) -> io::Result<()> {
    write_secret(&Path::new(DIR).join("facts.json"), &serde_json::to_vec_pretty(facts)?)
}

fn write_secret(path: &Path, data: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(data)
}
