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
        let mirror = Mirror::of_apt(self.suite)?;
        let (root, unfinished) = (folder.join("root"), folder.join("unfinished.tar"));
        let remove = || run(as_root("rm").args(["-rf", "--one-file-system"]).args([&root, &unfinished]));
        remove()?;
        eprintln!("Debian {} with {} from {}: making it once", self.suite, self.packages.join(", "), mirror.url);
        let limit = BOOTSTRAP_LIMIT.to_string();
        let mut bootstrap = as_root("env");
        bootstrap.args(&mirror.proxies).arg("DPKG_FORCE=unsafe-io").args(["timeout", "-k", "10", &limit]);
        bootstrap.args(["debootstrap", "--variant=minbase"]).arg(format!("--include={}", self.packages.join(",")));
        run(bootstrap.arg(self.suite).arg(&root).arg(&mirror.url)).with_context(|| {
            format!(
                "debootstrap could not make Debian {} from {}, which is what apt's sources name: is it reachable from here? (a proxy is \
                 taken from http_proxy or apt's Acquire::http::Proxy)",
                self.suite, mirror.url
            )
        })?;
        for (path, target) in self.links {
            run(as_root("ln").args(["-sfn", target]).arg(root.join(path)))?;
        }
        // Times differ with every unpacking and say nothing.
        let mut pack = as_root("tar");
        pack.args([
            "--create",
            "--sort=name",
            "--numeric-owner",
            "--mtime=@0",
            "--no-wildcards-match-slash",
            "--anchored",
        ]);
        pack.args(self.without.iter().map(|pattern| format!("--exclude={pattern}")));
        run(pack.arg("--file").arg(&unfinished).arg("--directory").arg(&root).arg("."))?;
        fs::rename(&unfinished, tar)?;
        remove()?;
        Ok(())
    }
}

/// Where apt gets a release from, and through what.
#[derive(Debug)]
struct Mirror {
    url: String,
    /// `http_proxy=URL` and the like, for wget.
    proxies: Vec<String>,
}

impl Mirror {
    fn of_apt(suite: &str) -> Result<Self> {
        let targets = run(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(CODENAME) $(RELEASE) $(COMPONENT) $(REPO_URI)",
            "Created-By: Packages",
        ]))?;
        let Some(url) = mirror_among(&targets, suite) else {
            bail!(
                "apt's sources: expected a mirror with {suite} main over http, https or file, found:\n{targets}add one to \
                 /etc/apt/sources.list.d"
            )
        };
        let mut proxies = Vec::new();
        for (item, variable) in [("Acquire::http::Proxy", "http_proxy"), ("Acquire::https::Proxy", "https_proxy")] {
            if let Ok(proxy) = std::env::var(variable) {
                proxies.push(format!("{variable}={proxy}"));
                continue;
            }
            let value = run(Command::new("apt-config").args(["--format", "%v%n", "dump", item]))?;
            let value = value.trim();
            if !value.is_empty() && value != "DIRECT" {
                proxies.push(format!("{variable}={value}"));
            }
        }
        Ok(Self { url, proxies })
    }
}

/// The first source of `suite`'s `main` that debootstrap can use; lines are codename, release, component, address.
fn mirror_among(targets: &str, suite: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let [codename, release, "main", url] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
        let usable = ["http://", "https://", "file:"].iter().any(|scheme| url.starts_with(scheme));
        (usable && (codename == suite || release == suite)).then(|| url.trim_end_matches('/').to_owned())
    })
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
    fn the_mirror_is_the_first_one_of_apt_that_debootstrap_can_use() {
        let targets = "bookworm-updates bookworm-updates main http://a/debian/\n\
                       bookworm bookworm contrib http://b/debian/\n\
                       bookworm bookworm main mirror+file:/etc/apt/list/\n\
                       bookworm stable main http://c/debian/\n\
                       bookworm bookworm main http://d/debian/\n";
        assert_eq!(mirror_among(targets, "bookworm").as_deref(), Some("http://c/debian"));
        assert_eq!(mirror_among(targets, "stable").as_deref(), Some("http://c/debian"));
        assert_eq!(mirror_among(targets, "trixie"), None);
        assert_eq!(mirror_among("", "bookworm"), None);
    }
}
