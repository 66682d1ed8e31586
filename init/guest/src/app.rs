//! Starting the app: environment, user, namespace and root, then `execvp` as the image says.

use crate::account::Account;
use crate::root::ROOT;
use holdfast_model::contract::guest::AppDocument;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid, setsid};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::fchown;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Where programs are looked for when the image sets no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Soft and hard limit of open files; the soft one is what programs that close all descriptors can bear.
const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// The app could not be started.
#[derive(Debug, thiserror::Error)]
#[error("start {program}: {source}")]
pub struct StartError {
    /// First word of the command.
    pub program: String,
    /// The kernel's reason.
    pub source: io::Error,
}

impl StartError {
    /// Exit code by the custom of shells: 127 not found, 126 cannot be run.
    pub fn exit_code(&self) -> i32 {
        if self.source.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
    }
}

/// The app's environment: defaults, then the document's entries, the last of a name winning.
pub fn environment(document: &AppDocument, account: &Account) -> Vec<(String, String)> {
    let defaults = [("PATH", DEFAULT_PATH), ("HOSTNAME", &document.hostname), ("HOME", &account.home)];
    let mut environment: Vec<(String, String)> =
        defaults.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    for (name, value) in document.env.iter().filter_map(|e| e.split_once('=')) {
        match environment.iter_mut().find(|(n, _)| n == name) {
            Some((_, v)) => value.clone_into(v),
            None => environment.push((name.to_owned(), value.to_owned())),
        }
    }
    environment
}

/// Starts the app in its own mount namespace with [`ROOT`] as root. Returns its process id and the reading ends of its standard output and error.
///
/// # Errors
/// See [`StartError`].
pub fn start(document: &AppDocument, account: &Account) -> Result<(i32, [OwnedFd; 2]), StartError> {
    let program = document.argv[0].clone();
    spawn(document, account).map_err(|source| StartError { program, source })
}

fn spawn(document: &AppDocument, account: &Account) -> io::Result<(i32, [OwnedFd; 2])> {
    let (out, app_out) = io::pipe()?;
    let (err, app_err) = io::pipe()?;
    for end in [app_out.as_fd(), app_err.as_fd()] {
        // Programs open /dev/stdout anew (nginx logs): the pipe must belong to their user.
        fchown(end, Some(account.uid), Some(account.gid))?;
    }
    let mut command = Command::new(&document.argv[0]);
    command.args(&document.argv[1..]).env_clear().envs(environment(document, account));
    command.stdin(Stdio::null()).stdout(app_out).stderr(app_err);

    // Everything the child needs is made here: between fork and exec it must not allocate.
    let cwd = CString::new(if document.cwd.is_empty() { "/" } else { document.cwd.as_str() })?;
    let groups: Vec<Gid> = account.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    let enter = move || -> io::Result<()> {
        setsid()?;
        // PID 1 keeps its signals blocked; the mask is inherited.
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        nix::unistd::chdir(ROOT)?;
        // rootfs cannot be pivoted away; moving the app's root over it hides it as well (switch_root does the same).
        mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
        nix::unistd::chroot(".")?;
        nix::unistd::chdir(cwd.as_c_str())?;
        setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.0, OPEN_FILES.1)?;
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        setgroups(&groups)?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
        Ok(())
    };
    // SAFETY: `enter` makes only system calls on values made before the fork; it neither allocates nor takes locks.
    unsafe { command.pre_exec(enter) };
    let child = command.spawn()?;
    Ok((i32::try_from(child.id()).map_err(io::Error::other)?, [out.into(), err.into()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(env: &[&str]) -> AppDocument {
        AppDocument {
            version: holdfast_model::contract::Version,
            hostname: "web".into(),
            argv: vec!["/bin/true".into()],
            env: env.iter().map(|e| (*e).to_owned()).collect(),
            user: String::new(),
            cwd: String::new(),
            stop_signal: String::new(),
            grace_seconds: 1,
            mounts: vec![],
        }
    }

    #[test]
    fn later_entries_win_over_earlier_ones_and_over_defaults() {
        let account = Account { uid: 0, gid: 0, groups: vec![], home: "/root".into() };
        let environment = environment(&document(&["A=1", "PATH=/opt", "A=2=3", "B="]), &account);
        let value =
            |name: &str| environment.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
        assert_eq!(value("A"), ["2=3"]);
        assert_eq!(value("B"), [""]);
        assert_eq!(value("PATH"), ["/opt"]);
        assert_eq!(value("HOME"), ["/root"]);
        assert_eq!(value("HOSTNAME"), ["web"]);
    }

    #[test]
    fn the_exit_code_tells_missing_from_unusable_programs() {
        let error = |kind: io::ErrorKind| StartError { program: "x".into(), source: kind.into() };
        assert_eq!(error(io::ErrorKind::NotFound).exit_code(), 127);
        assert_eq!(error(io::ErrorKind::PermissionDenied).exit_code(), 126);
    }
}
