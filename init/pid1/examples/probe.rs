//! A stand-in for `node` that looks at what PID 1 has made, for use with `direct_boot`.
//!
//! First life: prints the facts, starts itself as an unprivileged unit, and crashes. Second life: finds that unit still
//! running with its lines kept, stops it, and powers off. With `probe=idle` on the kernel's command line it only sends
//! heartbeats, for trying the power button; with `probe=rot` it reads its own file from the disk again and again, for
//! damaging the slot under a running system.

use holdfast_supervise::{Client, Restart, SOCKET_PATH, UnitName, UnitSpec};
use std::time::Duration;

fn main() {
    if std::env::args().nth(1).as_deref() == Some("child") {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        status.lines().filter(|l| l.starts_with("Uid") || l.starts_with("CapEff")).for_each(|l| println!("child: {l}"));
        println!("child: {}", std::fs::read_to_string("/proc/self/cgroup").unwrap().trim());
        std::thread::sleep(Duration::from_secs(3600));
    }
    let mut pid1 = Client::connect(SOCKET_PATH).unwrap();
    pid1.heartbeat().unwrap();
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap();
    let (idle, rot) = (cmdline.contains("probe=idle"), cmdline.contains("probe=rot"));
    if idle || rot {
        heartbeats_only(&mut pid1, rot);
    }
    let name = UnitName::new("child").unwrap();
    let units = pid1.list().unwrap();
    if let Some(child) = units.iter().find(|u| u.name == name) {
        println!("probe: second life, child is {:?}", child.state);
        println!("probe: {} lines kept", pid1.logs(0, None, 1000).unwrap().lines.len());
        println!("probe: kernel log has {} bytes", pid1.kernel_log_tail(4096).unwrap().len());
        for file in ["memory.max", "pids.max", "cgroup.procs"] {
            let path = holdfast_supervise::cgroup_path(&name).join(file);
            println!("probe: {file} {}", std::fs::read_to_string(path).unwrap_or_default().trim());
        }
        let rss = std::fs::read_to_string("/proc/1/status").unwrap();
        rss.lines().filter(|l| l.starts_with("Vm")).for_each(|l| println!("probe: pid1 {l}"));
        let smaps = std::fs::read_to_string("/proc/1/smaps_rollup").unwrap_or_default();
        smaps
            .lines()
            .filter(|l| l.starts_with("Rss") || l.starts_with("Pss:"))
            .for_each(|l| println!("probe: pid1 {l}"));
        pid1.stop(&name, Some(Duration::from_secs(1))).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        println!(
            "probe: units {:?}",
            pid1.list().unwrap().iter().map(|u| (u.name.as_str(), u.state)).collect::<Vec<_>>()
        );
        pid1.power_off("the probe is done").unwrap();
        std::thread::sleep(Duration::from_secs(3600));
    }
    println!("{}", std::fs::read_to_string("/run/holdfast/boot/facts.json").unwrap());
    for pcr in [11, 14] {
        let path = format!("/sys/class/tpm/tpm0/pcr-sha256/{pcr}");
        println!("probe: PCR {pcr} {}", std::fs::read_to_string(path).unwrap_or_default().trim());
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().for_each(|l| println!("probe: mount {l}"));
    let mut spec = UnitSpec::new(name, "/bin/node", 1000);
    spec.args = vec!["child".into()];
    spec.restart = Restart::Always;
    spec.limits.memory_max_bytes = Some(64 << 20);
    spec.limits.pids_max = Some(10);
    pid1.start(&spec, &[]).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    println!("probe: crashing now");
    std::process::abort();
}

fn heartbeats_only(pid1: &mut Client, rot: bool) -> ! {
    loop {
        pid1.heartbeat().unwrap();
        if rot {
            std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
            println!("probe: read {:?}", std::fs::read("/bin/node").map(|data| data.len()));
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}
