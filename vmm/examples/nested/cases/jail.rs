//! What is left to a VM in its jail, as seen from outside.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::process::Child;

use holdfast_model::contract::vm::{ConsoleConfig, DiskConfig, FileRef, NetConfig, TapRef, VhostRef};
use holdfast_vmm::control::{ControlClient, listen};

use super::whole::echo_line;
use crate::host::{
    CONTROL, INITRD, JAIL, KERNEL, Lines, Outcome, Scenario, config, disk, expect_code, open, pipe, processes,
    spawn_with, tap, text,
};

pub const SCENARIOS: &[Scenario] =
    &[Scenario { name: "jailed_vm_holds_what_it_was_given_and_nothing_else", run: holdings }];

fn holdings() -> Outcome {
    let (reader, writer) = pipe()?;
    let files: Vec<OwnedFd> = vec![
        open("/dev/kvm", true)?.into(),
        open(KERNEL, false)?.into(),
        open(INITRD, false)?.into(),
        disk()?.into(),
        tap("tap0")?.into(),
        open("/dev/vhost-net", true)?.into(),
        listen(CONTROL.as_ref()).map_err(text)?,
        writer.into(),
    ];
    let mut config = config("held", "innocent");
    (config.kvm, config.kernel, config.initrd) = (FileRef::Fd(4), FileRef::Fd(5), Some(FileRef::Fd(6)));
    config.disks = vec![DiskConfig::new("data", FileRef::Fd(7))];
    let mut net = NetConfig::new("02:00:00:00:00:02".parse().map_err(text)?, TapRef::Fd(8));
    net.vhost = Some(VhostRef::Fd(9));
    config.nets = vec![net];
    (config.control, config.console) = (Some(FileRef::Fd(10)), Some(ConsoleConfig::to(FileRef::Fd(11))));
    config.jail = JAIL;
    let (mut child, errors) = spawn_with(&config, files)?;
    let lines = Lines::of(reader);
    lines.wait("guest: innocent")?;
    check(&child)?;
    let [outer, inner] = processes(&child)[..] else { return Err("expected two processes".into()) };
    let before = descriptors(inner)?;
    // Given and used up: the configuration, the kernel, the initrd, /dev/kvm itself.
    let expected = [
        ("disk.img", 1),
        ("/dev/net/tun", 1),
        ("/dev/vhost-net", 1),
        ("socket:", 1),
        ("anon_inode:kvm-vm", 1),
        ("anon_inode:kvm-vcpu:0", 1),
        ("anon_inode:kvm-vcpu-stats:0", 1),
        ("anon_inode:[eventpoll]", 1),
        ("anon_inode:[io_uring]", 1),
    ];
    for (what, count) in expected {
        let found = before.values().filter(|link| link.contains(what)).count();
        if found != count {
            return Err(format!("{found} descriptors are {what:?}, expected {count}: {before:?}"));
        }
    }
    let known = |link: &str| {
        // Standard streams, the console, eventfds; the end of the pipe that tells that the parent lives.
        link == "/dev/console" || link.starts_with("pipe:") || link == "anon_inode:[eventfd]"
    };
    let strange: Vec<_> =
        before.values().filter(|link| !known(link) && !expected.iter().any(|(what, _)| link.contains(what))).collect();
    if !strange.is_empty() {
        return Err(format!("descriptors that nobody gave: {strange:?}"));
    }
    let waiting = descriptors(outer)?;
    if waiting.len() != 4 || !waiting.values().all(|link| known(link)) {
        return Err(format!("the waiting parent holds {waiting:?}, expected the standard streams and its pipe"));
    }
    // Work, control connections, a pause: nothing is opened for any of it.
    for n in 0..3 {
        echo_line(&format!("{n}\n")).map_err(text)?;
        let mut client = ControlClient::connect(CONTROL).map_err(text)?;
        client.pause().and_then(|()| client.resume()).map_err(text)?;
    }
    let mut client = ControlClient::connect(CONTROL).map_err(text)?;
    client.ping().map_err(text)?;
    drop(client);
    std::thread::sleep(std::time::Duration::from_millis(100));
    let after = descriptors(inner)?;
    if after != before {
        return Err(format!("descriptors changed at work: {before:?}, then {after:?}"));
    }
    ControlClient::connect(CONTROL).map_err(text)?.power_button().map_err(text)?;
    expect_code(&mut child, 0)?;
    let said = errors.remaining();
    if said.contains("Landlock") {
        return Err(said);
    }
    Ok(format!("{} descriptors", before.len()))
}

/// Descriptors of a process and what they are.
fn descriptors(id: u32) -> Result<BTreeMap<u32, String>, String> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{id}/fd")).map_err(text)?.flatten() {
        let number = entry.file_name().to_string_lossy().parse().map_err(text)?;
        let link = std::fs::read_link(entry.path()).map_err(text)?;
        all.insert(number, link.to_string_lossy().into_owned());
    }
    Ok(all)
}

/// User, capabilities, namespaces, root and filters of a jailed VM with a pid namespace.
pub fn check(child: &Child) -> Result<(), String> {
    for id in processes(child) {
        for (name, expected) in [
            ("Uid:", "1000\t1000\t1000\t1000"),
            ("Gid:", "1000\t1000\t1000\t1000"),
            ("Groups:", ""),
            ("CapInh:", "0000000000000000"),
            ("CapPrm:", "0000000000000000"),
            ("CapEff:", "0000000000000000"),
            ("CapAmb:", "0000000000000000"),
            ("NoNewPrivs:", "1"),
            ("Seccomp:", "2"),
        ] {
            let found = status(&format!("/proc/{id}/status"), name);
            if found != expected {
                return Err(format!("{name} of process {id} is {found:?}, expected {expected:?}"));
            }
        }
    }
    let inner = *processes(child).last().ok_or("no process")?;
    for space in ["net", "mnt", "ipc", "uts", "pid"] {
        let of = |id: &str| std::fs::read_link(format!("/proc/{id}/ns/{space}")).map_err(text);
        if of("self")? == of(&inner.to_string())? {
            return Err(format!("{space} namespace is ours"));
        }
    }
    let mounts = std::fs::read_to_string(format!("/proc/{inner}/mountinfo")).map_err(text)?;
    let only = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).collect::<Vec<_>>();
    match &only[..] {
        [root] if root[4] == "/" && root[5].split(',').any(|option| option == "ro") => {}
        _ => return Err(format!("mounts are {mounts:?}, expected one read-only root")),
    }
    let root: Vec<_> = std::fs::read_dir(format!("/proc/{inner}/root")).map_err(text)?.collect();
    if !root.is_empty() {
        return Err(format!("root holds {} entries", root.len()));
    }
    // Each of our threads has its filter. The vhost worker is the kernel's own and runs no code of ours.
    for task in std::fs::read_dir(format!("/proc/{inner}/task")).map_err(text)?.flatten() {
        let path = task.path().join("status").to_string_lossy().into_owned();
        let (name, filter) = (status(&path, "Name:"), status(&path, "Seccomp:"));
        if filter != "2" && !name.starts_with("vhost-") {
            return Err(format!("thread {name:?} has no seccomp filter"));
        }
    }
    Ok(())
}

/// A field of a status file.
fn status(path: &str, name: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_string()).unwrap_or_default()
}
