//! The device's TPM: swtpm with its state in a folder, one process per power-on.

use crate::process::Process;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long swtpm may take to open its socket.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Makes a TPM in `state`: endorsement keys and their certificates, the SHA-256 bank only. Does nothing when there is one already.
///
/// # Errors
/// When `swtpm_setup` fails.
pub fn manufacture(state: &Path) -> Result<()> {
    if state.join("tpm2-00.permall").is_file() {
        return Ok(());
    }
    // Made aside and moved: an interrupted manufacture must not leave a TPM without its keys.
    let making = state.with_extension("making");
    let _ = fs::remove_dir_all(&making);
    fs::create_dir_all(&making).with_context(|| format!("cannot make {}", making.display()))?;
    let authority = authority()?;
    let output = Command::new("swtpm_setup")
        .args(["--tpm2", "--create-ek-cert", "--pcr-banks", "sha256", "--tpmstate"])
        .arg(&making)
        .arg("--config")
        .arg(&authority.config)
        .stdin(Stdio::null())
        .output()
        .context("cannot start swtpm_setup; apt-get install swtpm-tools")?;
    if !output.status.success() || !making.join("tpm2-00.permall").is_file() {
        bail!(
            "swtpm_setup ended with {}:\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let _ = fs::remove_dir_all(state);
    fs::rename(&making, state).with_context(|| format!("cannot move the new TPM to {}", state.display()))?;
    Ok(())
}

/// The certificate authority that signs endorsement certificates: one per user, since making its key takes seconds and needs no secrecy.
struct Authority {
    config: PathBuf,
    _lock: File,
}

fn authority() -> Result<Authority> {
    let folder = std::env::temp_dir().join(format!("holdfast-tpm-authority-{}", nix::unistd::geteuid()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // swtpm_localca does not expect company while it makes its key or counts serial numbers.
    let lock = File::create(folder.join("lock"))?;
    lock.lock().context("cannot lock the TPM certificate authority")?;
    let path = |name: &str| folder.join(name).display().to_string();
    fs::write(
        folder.join("swtpm-localca.conf"),
        format!(
            "statedir = {}\nsigningkey = {}\nissuercert = {}\ncertserial = {}\n",
            folder.display(),
            path("signkey.pem"),
            path("issuercert.pem"),
            path("certserial")
        ),
    )?;
    fs::write(
        folder.join("swtpm-localca.options"),
        "--platform-manufacturer Holdfast\n--platform-version 1.0\n--platform-model QEMU\n",
    )?;
    let config = folder.join("swtpm_setup.conf");
    let text = format!(
        "create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = {}\ncreate_certs_tool_options = {}\n",
        path("swtpm-localca.conf"),
        path("swtpm-localca.options")
    );
    fs::write(&config, text)?;
    Ok(Authority { config, _lock: lock })
}

/// Starts the TPM with the state in `state` (made absolute: swtpm fails much later on a relative path); QEMU connects to `socket`.
///
/// # Errors
/// When it does not open its socket in time.
pub fn start(state: &Path, socket: &Path, log: &Path) -> Result<Process> {
    let state = fs::canonicalize(state).with_context(|| format!("TPM state {} is not there", state.display()))?;
    let _ = fs::remove_file(socket);
    let mut command = Command::new("swtpm");
    command.args(["socket", "--tpm2", "--terminate", "--tpmstate"]).arg(format!("dir={}", state.display()));
    command.arg("--ctrl").arg(format!("type=unixio,path={}", socket.display()));
    let mut process = Process::start("swtpm", command, log)?;
    let started = Instant::now();
    while !socket.exists() {
        process.check()?;
        if started.elapsed() > START_TIMEOUT {
            bail!(
                "swtpm did not open {} within {} s; its messages are in {}",
                socket.display(),
                START_TIMEOUT.as_secs(),
                log.display()
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(process)
}
