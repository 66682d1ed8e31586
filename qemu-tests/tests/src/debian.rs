//! Root file systems of Debian's own packages: made by debootstrap once per machine and recipe, kept in the cache as a tar.
//!
//! Nothing here names a server: packages come from where this machine's apt gets them.

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use xtask::workspace::{cache, run};

/// Longest time for debootstrap, in seconds; with a near mirror it takes one minute.
const BOOTSTRAP_LIMIT: u64 = 900;
/// Longest time to wait for another process that makes the same file system.
const LOCK_LIMIT: Duration = Duration::from_secs(BOOTSTRAP_LIMIT + 60);
/// Goes into the name of what is cached: changes with the way it is made.
const PROCEDURE: u32 = 1;

/// What a root file system is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// Folder in the cache.
    pub name: &'static str,
    /// Debian release.
    pub suite: &'static str,
    /// Packages besides debootstrap's `minbase`.
    pub packages: &'static [&'static str],
    /// Symbolic links made at last, in place of what was there: path without leading slash, target.
    pub links: &'static [(&'static str, &'static str)],
    /// Left out: patterns of GNU tar, `*` does not match a slash.
    pub without: &'static [&'static str],
}

/// nginx as Debian ships it. Its logs go where a container's belong, as in the image that everybody pulls.
pub const NGINX: Recipe = Recipe {
    name: "debian-nginx",
    suite: "bookworm",
    packages: &["nginx"],
    links: &[("var/log/nginx/access.log", "/dev/stdout"), ("var/log/nginx/error.log", "/dev/stderr")],
    without: &[
        "./dev/*",
        "./proc/*",
        "./sys/*",
        "./run/*",
        "./tmp/*",
        // debootstrap copies these from the machine it runs on.
        "./etc/hostname",
        "./etc/resolv.conf",
        "./usr/share/doc/*",
        "./usr/share/info/*",
        "./usr/share/locale/*",
        "./usr/share/man/*",
        "./var/cache/apt/*",
        "./var/cache/debconf/*",
        "./var/cache/ldconfig/*",
        "./var/lib/apt/lists/*",
        "./var/log/*.log",
    ],
};

impl Recipe {
    /// The file system as a tar, from the cache or made now, which takes about a minute.
    ///
    /// # Errors
    /// No mirror in apt's sources, or one that cannot be reached; no right to make device nodes.
    pub fn tar(&self) -> Result<PathBuf> {
        let folder = cache().join(self.name);
        let key = hex::encode(&Sha256::digest(format!("{PROCEDURE} {self:?}"))[..8]);
        let tar = folder.join(format!("{key}.tar"));
        if tar.is_file() {
            return Ok(tar);
        }
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let _lock = lock(&folder.join("lock"))?;
        if !tar.is_file() {
            self.make(&folder, &tar).with_context(|| format!("cannot make {}", tar.display()))?;
        }
        Ok(tar)
    }

    fn make(&self, folder: &Path, tar: &Path) -> Result<()> {
        let (root, unfinished) = (folder.join("root"), folder.join("unfinished.tar"));
        let remove = || run(as_root("rm").args(["-rf", "--one-file-system"]).args([&root, &unfinished]));
        let (mirrors, proxies) = (mirrors(self.suite)?, proxies()?);
        let mut failures = Vec::new();
        for mirror in &mirrors {
            remove()?;
            eprintln!("Debian {} with {} from {mirror}: making it once", self.suite, self.packages.join(", "));
            match self.bootstrap(&root, mirror, &proxies) {
                Ok(()) => {
                    self.pack(&root, &unfinished)?;
                    fs::rename(&unfinished, tar)?;
                    remove()?;
                    return Ok(());
                }
                Err(e) => failures.push(format!("{e:#}")),
            }
        }
        bail!(
            "debootstrap could make Debian {} from no source of apt ({}); are they reachable from here? A proxy is taken from http_proxy or \
             apt's Acquire::http::Proxy\n{}",
            self.suite,
            mirrors.join(", "),
            failures.join("\n")
        )
    }

    fn bootstrap(&self, root: &Path, mirror: &str, proxies: &[String]) -> Result<()> {
        let limit = BOOTSTRAP_LIMIT.to_string();
        let mut command = as_root("env");
        command.args(proxies).arg("DPKG_FORCE=unsafe-io").args(["timeout", "-k", "10", &limit]);
        command.args(["debootstrap", "--variant=minbase"]).arg(format!("--include={}", self.packages.join(",")));
        run(command.arg(self.suite).arg(root).arg(mirror)).map(drop)
    }

    fn pack(&self, root: &Path, tar: &Path) -> Result<()> {
        for (path, target) in self.links {
            run(as_root("ln").args(["-sfn", target]).arg(root.join(path)))?;
        }
        let mut command = as_root("tar");
        // Times differ with every unpacking and say nothing.
        command.args(["--create", "--sort=name", "--numeric-owner", "--mtime=@0"]);
        command.args(["--no-wildcards-match-slash", "--anchored"]);
        command.args(self.without.iter().map(|pattern| format!("--exclude={pattern}")));
        run(command.arg("--file").arg(tar).arg("--directory").arg(root).arg(".")).map(drop)
    }
}

/// Where apt gets a release from. It is asked for what it would fetch: that needs neither its lists nor the network.
fn mirrors(suite: &str) -> Result<Vec<String>> {
    let fetched = run(Command::new("apt-get").args(["--print-uris", "update"]))?;
    let mirrors = mirrors_among(&fetched, suite);
    if mirrors.is_empty() {
        bail!(
            "apt's sources: expected one of {suite} over http, https or file, found:\n{fetched}add one to /etc/apt/sources.list.d"
        );
    }
    Ok(mirrors)
}

/// The sources of `suite` that debootstrap can use; it checks itself that Debian signed what it finds there. Lines are an address in single
/// quotes, then other words.
fn mirrors_among(fetched: &str, suite: &str) -> Vec<String> {
    let mut mirrors: Vec<String> = Vec::new();
    for address in fetched.lines().filter_map(|line| line.strip_prefix('\'')?.split('\'').next()) {
        let usable = ["http://", "https://", "file:"].iter().any(|scheme| address.starts_with(scheme));
        if let Some((mirror, _)) = address.split_once(&format!("/dists/{suite}/"))
            && usable
            && !mirrors.iter().any(|m| m == mirror)
        {
            mirrors.push(mirror.to_owned());
        }
    }
    mirrors
}

/// `http_proxy=URL` and the like, for debootstrap's wget: the environment's, else apt's.
fn proxies() -> Result<Vec<String>> {
    let mut proxies = Vec::new();
    for (item, variable) in [("Acquire::http::Proxy", "http_proxy"), ("Acquire::https::Proxy", "https_proxy")] {
        let proxy = match std::env::var(variable) {
            Ok(proxy) => proxy,
            Err(_) => run(Command::new("apt-config").args(["--format", "%v%n", "dump", item]))?,
        };
        let proxy = proxy.trim();
        if !proxy.is_empty() && proxy != "DIRECT" {
            proxies.push(format!("{variable}={proxy}"));
        }
    }
    Ok(proxies)
}

/// A command that makes device nodes and files of other owners.
pub fn as_root(program: &str) -> Command {
    if nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

fn lock(path: &Path) -> Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if began.elapsed() < LOCK_LIMIT => {
                std::thread::sleep(Duration::from_millis(200));
            }
            Err(e) => return Err(e).with_context(|| format!("{}: is another process at work there?", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_those_sources_of_apt_that_debootstrap_can_use() {
        let fetched = "'http://a/debian/dists/bookworm/InRelease' a_debian_dists_bookworm_InRelease 0 \n\
                       'http://a/debian/dists/bookworm-updates/InRelease' x 0 \n\
                       'mirror+file:/etc/apt/list/dists/bookworm/InRelease' x 0 \n\
                       'http://a/debian/dists/bookworm/main/binary-amd64/Packages.xz' x 0 \n\
                       'https://b/dists/bookworm/main/binary-amd64/Packages.xz' x 0 \n";
        assert_eq!(mirrors_among(fetched, "bookworm"), ["http://a/debian", "https://b"]);
        assert!(mirrors_among(fetched, "trixie").is_empty());
        assert!(mirrors_among("", "bookworm").is_empty());
    }
}
