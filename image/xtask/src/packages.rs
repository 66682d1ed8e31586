//! Debian packages that the build and the tests need, and their installation.

use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};

/// Why a package is needed decides when it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// To build kernels, programs and the image.
    Build,
    /// To run the device in QEMU.
    Run,
    /// Independent witnesses of the tests.
    Test,
}

/// Package, first need, and what for.
const PACKAGES: &[(&str, Need, &str)] = &[
    ("linux-source-6.12", Need::Build, "kernel source"),
    ("gcc", Need::Build, "kernel and ring"),
    ("libc6-dev", Need::Build, "C library for static and dynamic programs"),
    ("make", Need::Build, "kernel"),
    ("flex", Need::Build, "kernel configuration"),
    ("bison", Need::Build, "kernel configuration"),
    ("bc", Need::Build, "kernel"),
    ("libelf-dev", Need::Build, "kernel objtool"),
    ("libssl-dev", Need::Build, "kernel tools"),
    ("xz-utils", Need::Build, "kernel source archive"),
    ("lz4", Need::Build, "kernel payload"),
    ("zstd", Need::Build, "kernel payload"),
    ("cpio", Need::Build, "kernel"),
    ("kmod", Need::Build, "kernel build's depmod check"),
    ("pkg-config", Need::Build, "finding libtss2"),
    ("libtss2-dev", Need::Build, "TPM library"),
    ("systemd-boot-efi", Need::Build, "the UKI's EFI stub"),
    ("erofs-utils", Need::Build, "mkfs.erofs"),
    ("e2fsprogs", Need::Build, "the ext4 seed"),
    ("ovmf", Need::Build, "firmware and the development Secure Boot key"),
    ("openssl", Need::Build, "unlocking the development Secure Boot key"),
    ("qemu-system-x86", Need::Run, "the machine"),
    ("qemu-utils", Need::Run, "disk overlays"),
    ("swtpm", Need::Run, "the TPM"),
    ("swtpm-tools", Need::Run, "manufacturing the TPM"),
    ("tpm2-tools", Need::Test, "witness of quotes and policies"),
    ("sbsigntool", Need::Test, "witness of Authenticode signatures"),
    ("cryptsetup-bin", Need::Test, "witness of verity trees"),
    ("mtools", Need::Test, "witness of FAT images"),
    ("dosfstools", Need::Test, "witness of FAT images"),
    ("fdisk", Need::Test, "witness of GPT"),
    ("nftables", Need::Test, "witness of firewall rules"),
    ("iproute2", Need::Test, "network namespaces of tests"),
    ("iperf3", Need::Test, "traffic between VMs"),
    ("iputils-ping", Need::Test, "traffic in network tests"),
    ("isc-dhcp-client", Need::Test, "witness of our DHCP server"),
    ("dnsmasq-base", Need::Test, "witness of our DHCP client"),
    ("bind9-dnsutils", Need::Test, "witness of our DNS forwarder"),
    ("procps", Need::Test, "ending witnesses"),
    ("busybox", Need::Test, "witness DHCP client"),
    ("debootstrap", Need::Test, "the nginx image"),
    ("docker-registry", Need::Test, "witness registry"),
    ("python3", Need::Test, "table checks"),
];

/// An install may remove a package that was here: one of another release (backports) that stands in the way. What it removed is
/// installed in the next round, from the same release as the rest.
const ROUNDS: usize = 3;

/// Installs of all packages up to `need` those that are missing, saying which; uses sudo when not root.
///
/// # Errors
/// When apt-get fails, or sudo is needed and absent.
pub fn ensure(need: Need) -> Result<()> {
    for _ in 0..ROUNDS {
        let missing = missing(need, &installed);
        if missing.is_empty() {
            return Ok(());
        }
        eprintln!("Debian packages to install:");
        for (name, why) in &missing {
            eprintln!("  {name:22} {why}");
        }
        let names: Vec<&str> = missing.iter().map(|(name, _)| *name).collect();
        apt(&["install", "-y", "-q", "--no-install-recommends"], &names)
            .or_else(|_| {
                eprintln!("apt-get install failed; refreshing the package lists and trying once more");
                apt(&["update", "-q"], &[])?;
                apt(&["install", "-y", "-q", "--no-install-recommends"], &names)
            })
            .with_context(|| format!("install by hand, then run again: apt-get install {}", names.join(" ")))?;
    }
    let left: Vec<&str> = missing(need, &installed).into_iter().map(|(name, _)| name).collect();
    if left.is_empty() {
        return Ok(());
    }
    bail!(
        "apt-get installed everything and yet these packages are not here: {}; another package that it installed may \
         conflict with them: see its messages above",
        left.join(", ")
    )
}

/// Package and reason of all up to `need` that are not here.
fn missing(need: Need, installed: &dyn Fn(&str) -> bool) -> Vec<(&'static str, &'static str)> {
    let wanted = PACKAGES.iter().filter(|(name, n, _)| *n <= need && !installed(name));
    wanted.map(|(name, _, why)| (*name, *why)).collect()
}

fn installed(name: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", name])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|o| o.stdout == b"installed")
}

fn apt(verb: &[&str], names: &[&str]) -> Result<()> {
    let root = nix::unistd::geteuid().is_root();
    let mut command = if root {
        Command::new("apt-get")
    } else {
        let mut c = Command::new("sudo");
        c.args(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        c
    };
    let status = command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-o", "DPkg::Lock::Timeout=120"])
        .args(verb)
        .args(names)
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| {
            if root { "apt-get is not here: Holdfast builds on Debian 12" } else { "neither root nor sudo" }
        })?;
    if !status.success() {
        bail!("apt-get {} ended with {status}", verb[0]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_package_is_named_once_as_debian_writes_names_and_with_a_reason() {
        let names: BTreeSet<&str> = PACKAGES.iter().map(|(name, _, _)| *name).collect();
        assert_eq!(names.len(), PACKAGES.len(), "expected no package twice");
        for (name, _, why) in PACKAGES {
            let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
            assert!(name.len() >= 2 && name.chars().all(valid), "{name}");
            assert!(!why.is_empty(), "{name}: why?");
        }
    }

    #[test]
    fn needs_grow_from_building_over_running_to_testing() {
        assert!(Need::Build < Need::Run && Need::Run < Need::Test);
        let count = |need| PACKAGES.iter().filter(|(_, n, _)| *n <= need).count();
        assert!(
            0 < count(Need::Build) && count(Need::Build) < count(Need::Run) && count(Need::Run) < count(Need::Test)
        );
    }

    #[test]
    fn what_an_install_took_away_is_missing_again() {
        assert!(missing(Need::Test, &|_| true).is_empty());
        let left = missing(Need::Run, &|name| name != "qemu-utils");
        assert_eq!(left, [("qemu-utils", "disk overlays")]);
        assert!(missing(Need::Build, &|name| name != "qemu-utils").is_empty(), "building needs no disk overlays");
    }

    #[test]
    fn what_is_not_a_package_is_not_installed() {
        assert!(!installed("no-such-package-of-holdfast"));
    }
}
