//! One guest and its host: both paths, both directions, TCP and UDP; what a byte costs.

use holdfast_vmm::config::{NetConfig, TapRef, VhostRef};

use super::{Guest, iperf, round_trip, tap, vhost, without_iperf};
use crate::host::{Outcome, figure};

/// The guest's address in words.
const GUEST: &str = "10.9.0.2";
/// What is measured: its name, and what iperf3 is told. TCP goes in large segments, UDP frame by frame.
const FLOWS: [(&str, &[&str]); 4] = [
    ("TCP to guest", &["--time", "3"]),
    ("TCP from guest", &["--time", "3", "--reverse"]),
    ("UDP to guest", &["--udp", "--bitrate", "100M", "--time", "2"]),
    ("UDP from guest", &["--udp", "--bitrate", "100M", "--time", "2", "--reverse"]),
];

/// What was measured on one path.
struct Path {
    /// For each flow: MB in a second of the data path's CPU, and of the whole process's.
    per_cpu: Vec<(f64, f64)>,
    note: String,
}

pub(super) fn host_and_guest() -> Outcome {
    if let Some(outcome) = without_iperf() {
        return outcome;
    }
    let user = path("net-user", false)?;
    let vhost = path("net-vhost", true)?;
    let mut ratios = String::new();
    for ((way, _), (vhost, user)) in FLOWS.iter().zip(vhost.per_cpu.iter().zip(&user.per_cpu)) {
        figure(&format!("{way}, bytes for each CPU second, user space"), user.0, "MB/CPU s");
        figure(&format!("{way}, bytes for each CPU second, vhost-net"), vhost.0, "MB/CPU s");
        figure(&format!("{way}, bytes for each CPU second, vhost-net to user space"), vhost.0 / user.0, "");
        ratios += &format!(" {way}: data path {:.2}x, process {:.2}x;", vhost.0 / user.0, vhost.1 / user.1);
    }
    let note =
        format!("| user: {} | vhost: {} | vhost over user, bytes per CPU second:{ratios}", user.note, vhost.note);
    // How much cheaper vhost is, is for a real processor to say; that it is not dearer holds even in emulation.
    let tcp = |path: &Path| path.per_cpu.iter().take(2).map(|cost| cost.0).sum::<f64>();
    if tcp(&vhost) > tcp(&user) * 0.8 { Ok(note) } else { Err(note) }
}

fn path(name: &str, through_vhost: bool) -> Result<Path, String> {
    let mut files = vec![tap(if through_vhost { "tap-v" } else { "tap-u" })?];
    if through_vhost {
        files.push(vhost()?);
    }
    let net = |mac| NetConfig { vhost: through_vhost.then_some(VhostRef::Fd(6)), ..NetConfig::new(mac, TapRef::Fd(5)) };
    let guest = Guest::start(name, 2, net, files, 1, "")?;
    let median = round_trip(GUEST, 200)?;
    let mut note = format!("median round trip {median:.0} us");
    let mut per_cpu = Vec::new();
    for (way, words) in FLOWS {
        let before = guest.cpu();
        let flow = iperf(GUEST, words)?;
        let after = guest.cpu();
        let data = after.1 - before.1;
        let cost = |seconds: f64| flow.bytes / seconds.max(0.01) / 1e6;
        let (data, all) = (cost(data), cost(data + after.0 - before.0));
        per_cpu.push((data, all));
        note += &format!(
            ", {way} {:.0} MB/s {:.0} % lost ({data:.0} MB per data-path CPU s, {all:.0} per process CPU s)",
            flow.rate(),
            flow.lost_percent
        );
    }
    Ok(Path { per_cpu, note })
}
