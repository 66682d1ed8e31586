//! The supervisor as an ordinary process with real units, watched through its socket only.
//!
//! The wrong way to see these behaviours would be to look into the supervisor's memory: what counts is what `node`
//! is told and what the processes themselves find (descriptors, uid, capabilities, cgroup).

use holdfast_model::contract::end::{End, ExitClass};
use holdfast_pid1::supervisor::cgroup::Cgroups;
use holdfast_pid1::supervisor::{Cause, Down, DownKind, Options, Platform, Supervisor};
use holdfast_supervise::{
    Backoff, CallError, Capabilities, Capability, Client, Event, Exit, RefusalKind, Restart, Stream, Subscription,
    UnitName, UnitSpec, UnitState, UnitStatus,
};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(10);

/// A machine without hardware.
struct Bench {
    faults: mpsc::Receiver<String>,
    recorded: mpsc::Sender<Down>,
}

impl Platform for Bench {
    fn pet_watchdog(&mut self) {}
    fn fault(&mut self) -> Option<String> {
        self.faults.try_recv().ok()
    }
    fn going_down(&mut self, down: &Down) {
        self.recorded.send(down.clone()).unwrap();
    }
    fn say(&mut self, text: &str) {
        println!("{text}");
    }
    fn console(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn console_ready(&mut self) {}
    fn kernel_log_tail(&mut self, max_bytes: usize) -> String {
        format!("at most {max_bytes}")
    }
    fn power_button(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn power_pressed(&mut self) -> bool {
        false
    }
}

struct Running {
    client: Client,
    events: Subscription,
    thread: JoinHandle<Down>,
    faults: mpsc::Sender<String>,
    recorded: mpsc::Receiver<Down>,
    socket: PathBuf,
    cgroups: Option<PathBuf>,
    _dir: tempfile::TempDir,
}

impl Running {
    fn new(test: &str) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let (faults, faults_end) = mpsc::channel();
        let (recorded_end, recorded) = mpsc::channel();
        let cgroups = own_cgroup(test);
        let options = Options {
            socket: socket.clone(),
            cgroups: cgroups.as_deref().map(|path| Cgroups::prepare(path).unwrap().0),
            init: false,
            watched: Some(name("node")),
        };
        let mut supervisor = Supervisor::new(Bench { faults: faults_end, recorded: recorded_end }, options).unwrap();
        let thread = std::thread::spawn(move || supervisor.run());
        let events = Subscription::connect(&socket).unwrap();
        let client = Client::connect(&socket).unwrap();
        Running { client, events, thread, faults, recorded, socket, cgroups, _dir: dir }
    }

    /// The next told state of a unit that satisfies `wanted`.
    fn wait(&mut self, unit: &str, wanted: impl Fn(&UnitStatus) -> bool) -> UnitStatus {
        let deadline = Instant::now() + LONG;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            if let Some(Event::Unit(status)) = self.events.next_within(left).unwrap()
                && status.name.as_str() == unit
                && wanted(&status)
            {
                return *status;
            }
        }
        panic!("unit {unit} did not come to the wanted state; now: {:?}", self.client.list());
    }

    fn run_to_end(&mut self, spec: &UnitSpec, fds: &[BorrowedFd<'_>]) -> (Exit, Vec<String>) {
        self.client.start(spec, fds).unwrap();
        let ended = self.wait(spec.name.as_str(), |s| s.state == UnitState::Ended);
        (ended.exit.unwrap(), self.output(&spec.name))
    }

    /// What the program itself wrote.
    fn output(&mut self, unit: &UnitName) -> Vec<String> {
        let logs = self.client.logs(0, Some(unit), 10_000).unwrap();
        logs.lines.into_iter().filter(|l| l.stream != Stream::Supervisor).map(|l| l.text).collect()
    }

    fn wait_output(&mut self, unit: &UnitName, lines: usize) {
        let deadline = Instant::now() + LONG;
        while self.output(unit).len() < lines {
            assert!(Instant::now() < deadline, "unit {unit} wrote less than {lines} lines");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn end(mut self) -> Down {
        let _ = self.client.power_off("end of test");
        let down = self.thread.join().unwrap();
        if let Some(path) = &self.cgroups {
            let deadline = Instant::now() + LONG;
            while fs::remove_dir(path).is_err() && path.exists() {
                for unit in fs::read_dir(path).unwrap().flatten() {
                    let _ = fs::remove_dir(unit.path());
                }
                assert!(Instant::now() < deadline, "{} is still in use", path.display());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        down
    }
}

/// A cgroup2 directory of our own, where this machine lets us have one.
fn own_cgroup(test: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find(|l| l.split(' ').nth(2) == Some("cgroup2"))?.split(' ').nth(1)?.to_owned();
    let path = Path::new(&mount).join(format!("holdfast-{}-{test}", std::process::id()));
    match fs::create_dir(&path) {
        Ok(()) => Some(path),
        Err(error) => {
            println!("no cgroup of our own ({error}): this test runs without");
            None
        }
    }
}

fn is_root() -> bool {
    // SAFETY: takes nothing, changes nothing.
    unsafe { libc::geteuid() == 0 }
}

fn name(text: &str) -> UnitName {
    UnitName::new(text).unwrap()
}

fn shell(unit: &str, script: &str) -> UnitSpec {
    let ids = if is_root() {
        1000
    } else {
        // SAFETY: as above.
        unsafe { libc::getuid() }
    };
    let mut spec = UnitSpec::new(name(unit), "/bin/sh", ids);
    spec.args = vec!["-c".into(), script.into()];
    spec.env = vec![("PATH".into(), "/usr/bin:/bin".into())];
    if !is_root() {
        spec.sandbox.capabilities = Capabilities::All;
    }
    spec
}

#[test]
fn unit_gets_its_descriptors_environment_and_nothing_else() {
    let mut bench = Running::new("fds");
    let mut files: Vec<File> = (0..2).map(|_| tempfile::tempfile().unwrap()).collect();
    writeln!(files[0], "first").unwrap();
    writeln!(files[1], "second").unwrap();
    let mut spec = shell(
        "u",
        "cat <&3; cat <&4; ls /proc/self/fd | tr '\\n' ' '; echo; echo $HELLO $HOME; pwd; cat; echo bad >&2",
    );
    spec.env.push(("HELLO".into(), "world".into()));
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();

    let (exit, mut output) = bench.run_to_end(&spec, &fds);

    output.sort();
    let mut expected = ["first", "second", "0 1 2 3 4 5 6 ", "world", "/", "bad"].map(String::from);
    expected.sort();
    // 5 is for its last words, 6 the directory that `ls` itself has open.
    assert_eq!((exit, output), (Exit::Code(0), expected.to_vec()));
    bench.end();
}

#[test]
fn last_words_are_kept_with_the_status_and_outlive_the_unit() {
    let mut bench = Running::new("words");
    let script =
        r#"printf '{"class":"guest-reset","reason":"the guest asked for a reset"}' >&$HOLDFAST_LAST_WORDS; kill -9 $$"#;
    bench.client.start(&shell("u", script), &[]).unwrap();

    let ended = bench.wait("u", |s| s.state == UnitState::Ended);

    let words = End::new(ExitClass::GuestReset, "the guest asked for a reset");
    assert_eq!((ended.exit, ended.end.as_ref()), (Some(Exit::Signal(9)), Some(&words)));
    assert_eq!(bench.client.list().unwrap()[0].end, Some(words));
    bench.end();
}

#[test]
fn unit_without_usable_last_words_gets_an_end_from_its_exit() {
    let mut bench = Running::new("silent");
    let table = [
        ("silent", "exit 3", ExitClass::Exited { code: 3 }),
        ("killed", "kill -9 $$", ExitClass::Killed { signal: 9 }),
        ("crashed", "kill -SEGV $$", ExitClass::Crashed { signal: 11 }),
        ("garbage", "echo hello >&$HOLDFAST_LAST_WORDS; exit 4", ExitClass::Exited { code: 4 }),
        ("flood", "head -c 9000 /dev/zero >&$HOLDFAST_LAST_WORDS; exit 5", ExitClass::Exited { code: 5 }),
        (
            "twice",
            r#"for n in 1 2; do printf '{"class":"done","reason":""}' >&$HOLDFAST_LAST_WORDS; done; exit 6"#,
            ExitClass::Exited { code: 6 },
        ),
    ];
    for (unit, script, class) in table {
        bench.client.start(&shell(unit, script), &[]).unwrap();
        let end = bench.wait(unit, |s| s.state == UnitState::Ended).end.unwrap();
        assert_eq!(end.class, class, "{unit}");
        assert!(end.reason.starts_with(&format!("unit {unit}: ")), "{end}");
    }
    bench.end();
}

#[test]
fn unit_over_its_memory_limit_ends_as_out_of_memory() {
    let mut bench = Running::new("oom");
    if bench.cgroups.is_none() {
        println!("not run: needs a cgroup of its own");
        bench.end();
        return;
    }
    // Memory that cannot be reclaimed, held by the shell itself.
    let mut spec = shell("u", "x=x; while :; do x=$x$x; done");
    spec.limits.memory_max_bytes = Some(16 << 20);
    match bench.client.start(&spec, &[]) {
        Ok(_) => {
            let end = bench.wait("u", |s| s.state == UnitState::Ended).end.unwrap();
            assert_eq!(end.class, ExitClass::OutOfMemory, "{end}");
            assert!(end.reason.contains("16 MiB"), "{end}");
        }
        // A kernel without the controller refuses the limit.
        Err(error) => println!("not run: no memory controller: {error}"),
    }
    bench.end();
}

#[test]
fn descriptors_of_the_largest_app_fit_into_one_start() {
    let mut bench = Running::new("largest");
    // Document, control socket, KVM, kernel, initrd; 18 disks, one of them in two layers, and the document's disk;
    // 16 cards of one queue pair each, and for each pair a tap and a vhost.
    let count = 5 + 18 + 2 + 16 * 2;
    let null = File::open("/dev/null").unwrap();
    let fds = vec![null.as_fd(); count];
    let mut spec = shell("u", "echo $HOLDFAST_LAST_WORDS; ls /proc/self/fd | wc -l");
    spec.limits = holdfast_supervise::Limits::default();

    let (exit, output) = bench.run_to_end(&spec, &fds);

    // Three streams, the last words, and what `ls` itself has open.
    assert_eq!((exit, output), (Exit::Code(0), vec![(3 + count).to_string(), (3 + count + 2).to_string()]));
    assert!(count <= holdfast_supervise::MAX_FDS);
    bench.end();
}

#[test]
fn as_many_units_as_the_largest_device_needs_are_kept() {
    let mut bench = Running::new("count");
    // 50 apps with two companions each, 200 networks.
    for n in 0..50 * 3 + 200 {
        bench.client.start(&shell(&format!("u{n}"), "exit 0"), &[]).unwrap();
    }
    assert_eq!(bench.client.list().unwrap().len(), 350);
    bench.end();
}

#[test]
fn powers_are_exactly_those_asked_for() {
    if !is_root() {
        println!("needs root: not run");
        return;
    }
    let mut bench = Running::new("powers");
    let look = "id -u; id -g; id -G; grep -E '^(Cap(Prm|Eff|Bnd|Amb)|NoNewPrivs)' /proc/self/status | tr -d '\\t'";
    let (_, none) = bench.run_to_end(&shell("none", look), &[]);
    assert_eq!(none[..3], ["1000", "1000", "1000"]);
    assert_eq!(
        none[3..],
        ["CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"]
            .map(|c| format!("{c}{:016x}", 0))
            .into_iter()
            .chain(["NoNewPrivs:1".into()])
            .collect::<Vec<_>>()
    );

    let mut one = shell("one", look);
    one.sandbox.capabilities = Capabilities::Only(vec![Capability::NetBindService]);
    let (_, one) = bench.run_to_end(&one, &[]);
    assert_eq!(one[3..7], ["CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"].map(|c| format!("{c}{:016x}", 1 << 10)));

    let mut root = shell("root", look);
    (root.uid, root.gid) = (0, 0);
    root.sandbox.capabilities = Capabilities::Only(vec![Capability::NetRaw]);
    let (_, root) = bench.run_to_end(&root, &[]);
    assert_eq!(root[4], format!("CapEff:{:016x}", 1 << 13), "root keeps no more than it is given");
    bench.end();
}

#[test]
fn namespaces_are_new_when_asked_for() {
    if !is_root() {
        println!("needs root: not run");
        return;
    }
    let mut bench = Running::new("ns");
    let mut spec = shell(
        "u",
        "echo $$; ls -d /proc/[0-9]* | head -1; ls /sys/class/net /proc/sys/net/ipv4/conf; cat /proc/net/dev | grep -c :",
    );
    spec.sandbox.new_net = true;
    spec.sandbox.new_pid = true;
    spec.sandbox.new_mount = true;
    spec.sandbox.new_ipc = true;
    let (exit, output) = bench.run_to_end(&spec, &[]);
    assert_eq!(exit, Exit::Code(0));
    assert_eq!(output[..2], ["1", "/proc/1"]);
    assert_eq!(output.last().unwrap(), "1", "only the loopback device: {output:?}");
    bench.end();
}

#[test]
fn killed_unit_is_started_again_with_backoff_and_its_descriptors_rewound() {
    let mut bench = Running::new("restart");
    let mut file = tempfile::tempfile().unwrap();
    writeln!(file, "config").unwrap();
    let mut spec = shell("u", "cat <&3; kill -9 $$");
    spec.restart = Restart::OnFailure;
    spec.backoff = Backoff { first_ms: 50, max_ms: 400 };
    bench.client.start(&spec, &[file.as_fd()]).unwrap();

    let mut waits = Vec::new();
    for _ in 0..4 {
        let status = bench.wait("u", |s| matches!(s.state, UnitState::Backoff { .. }));
        let UnitState::Backoff { until_ms } = status.state else { unreachable!() };
        assert_eq!(status.exit, Some(Exit::Signal(9)));
        waits.push(until_ms - status.since_ms);
    }
    assert_eq!(waits, [50, 100, 200, 400]);
    bench.client.stop(&spec.name, None).unwrap();
    bench.wait("u", |s| s.state == UnitState::Ended);
    let output = bench.output(&spec.name);
    assert!(output.len() >= 4 && output.iter().all(|l| l == "config"), "{output:?}");
    bench.end();
}

#[test]
fn unit_that_ignores_its_stop_signal_is_killed_with_its_children() {
    let mut bench = Running::new("stop");
    let marker = format!("424{}", std::process::id());
    let mut spec = shell("u", &format!("trap '' TERM; sleep {marker} & echo ready; while :; do sleep {marker}; done"));
    spec.stop.deadline_ms = 300;
    bench.client.start(&spec, &[]).unwrap();
    bench.wait_output(&spec.name, 1);
    let begin = Instant::now();

    bench.client.stop(&spec.name, None).unwrap();
    let stopping = bench.wait("u", |s| matches!(s.state, UnitState::Stopping { .. }));
    let ended = bench.wait("u", |s| s.state == UnitState::Ended);

    assert!(stopping.exit.is_none());
    assert_eq!(ended.exit, Some(Exit::Signal(9)));
    assert!(begin.elapsed() >= Duration::from_millis(300) && begin.elapsed() < LONG);
    let alive = || {
        fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|e| fs::read(e.path().join("cmdline")).ok())
            .filter(|c| c.starts_with(b"sleep\0") && c.windows(marker.len()).any(|w| w == marker.as_bytes()))
            .count()
    };
    let deadline = Instant::now() + LONG;
    while alive() != 0 {
        assert!(Instant::now() < deadline, "children of the unit are still there");
        std::thread::sleep(Duration::from_millis(20));
    }
    bench.end();
}

#[test]
fn errors_name_what_is_wrong_and_leave_nothing_behind() {
    let mut bench = Running::new("errors");
    let refused = |result: Result<u32, CallError>| match result {
        Err(CallError::Refused(refused)) => refused,
        other => panic!("{other:?}"),
    };
    let mut spec = shell("u", "sleep 60");
    spec.program = "/does/not/exist".into();
    let missing = refused(bench.client.start(&spec, &[]));
    assert_eq!(missing.kind, RefusalKind::Failed);
    assert!(missing.text.contains("/does/not/exist: execve: ENOENT"), "{}", missing.text);

    spec.program = "/bin/sh".into();
    bench.client.start(&spec, &[]).unwrap();
    assert_eq!(refused(bench.client.start(&spec, &[])).kind, RefusalKind::Busy);
    assert!(matches!(bench.client.remove(&spec.name), Err(CallError::Refused(r)) if r.kind == RefusalKind::Busy));
    let stranger = bench.client.stop(&name("stranger"), None);
    assert!(matches!(stranger, Err(CallError::Refused(r)) if r.kind == RefusalKind::Unknown));
    spec.tag = "x".repeat(300);
    assert_eq!(refused(bench.client.start(&spec, &[])).kind, RefusalKind::Invalid);
    bench.end();
}

#[test]
fn units_and_their_lines_survive_the_client_and_end_with_remove() {
    let mut bench = Running::new("survive");
    let mut spec = shell("vmm.1", "echo line one; echo line two; exec sleep 60");
    spec.tag = "config 7".into();
    let pid = bench.client.start(&spec, &[]).unwrap();
    bench.client = Client::connect(&bench.socket).unwrap();

    let list = bench.client.list().unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].state, UnitState::Running { pid });
    assert_eq!(list[0].spec.as_deref(), Some(&spec));
    bench.wait_output(&spec.name, 2);
    assert_eq!(bench.output(&spec.name), ["line one", "line two"]);
    bench.client.stop(&spec.name, Some(Duration::ZERO)).unwrap();
    bench.wait("vmm.1", |s| s.state == UnitState::Ended);
    bench.client.remove(&spec.name).unwrap();
    assert_eq!(bench.client.list().unwrap(), []);
    assert_eq!(bench.output(&spec.name), [] as [String; 0]);
    bench.end();
}

#[test]
fn unit_removed_while_it_stops_is_gone_when_it_has_ended() {
    let mut bench = Running::new("forget");
    let spec = shell("u", "exec sleep 60");
    bench.client.start(&spec, &[]).unwrap();
    bench.client.stop(&spec.name, Some(Duration::ZERO)).unwrap();
    bench.client.remove(&spec.name).unwrap();
    let ended = bench.wait("u", |s| s.state == UnitState::Ended);
    assert_eq!(ended.exit, Some(Exit::Signal(9)));
    assert_eq!(bench.client.list().unwrap(), []);
    bench.client.start(&spec, &[]).unwrap();
    bench.end();
}

#[test]
fn killed_node_is_started_again_and_apps_do_not_notice() {
    let mut bench = Running::new("node");
    let app = shell("vmm.1", "echo up; exec sleep 60");
    let app_pid = bench.client.start(&app, &[]).unwrap();
    let mut node = shell("node", "echo up; exec sleep 60");
    node.restart = Restart::Always;
    let first = bench.client.start(&node, &[]).unwrap();

    // SAFETY: a process that this test's supervisor has started and that still runs.
    unsafe { libc::kill(first as i32, libc::SIGKILL) };
    let again = bench.wait("node", |s| s.restarts == 1 && s.state.pid().is_some());

    assert_ne!(again.state.pid(), Some(first));
    let units = bench.client.list().unwrap();
    let seen = units.iter().find(|u| u.name == app.name).unwrap();
    assert_eq!((seen.state, seen.restarts), (UnitState::Running { pid: app_pid }, 0));
    bench.end();
}

#[test]
fn many_units_are_listed_in_pages() {
    let mut bench = Running::new("pages");
    for n in 0..12 {
        let mut spec = shell(&format!("u{n:02}"), "exit 3");
        spec.args.push("x".repeat(10_000));
        bench.client.start(&spec, &[]).unwrap();
    }
    let names: Vec<String> = bench.client.list().unwrap().into_iter().map(|u| u.name.into()).collect();
    assert_eq!(names, (0..12).map(|n| format!("u{n:02}")).collect::<Vec<_>>());
    bench.end();
}

#[test]
fn way_down_stops_apps_before_node_and_records_the_reason_first() {
    let mut bench = Running::new("down");
    let note = tempfile::NamedTempFile::new().unwrap();
    fs::set_permissions(note.path(), std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let script = |unit: &str| {
        format!(
            "trap 'sleep 0.2; echo {unit} >> {}; exit 0' TERM; echo ready; while :; do sleep 0.05; done",
            note.path().display()
        )
    };
    for unit in ["node", "vmm.1", "netsvc.1"] {
        bench.client.start(&shell(unit, &script(unit)), &[]).unwrap();
        bench.wait_output(&name(unit), 1);
    }

    bench.client.reboot("update to 2.0").unwrap();
    let recorded = bench.recorded.recv_timeout(LONG).unwrap();
    let late = bench.client.start(&shell("late", "true"), &[]);
    let socket = bench.socket.clone();
    let down = bench.end();

    assert_eq!(down, Down { kind: DownKind::Reboot, cause: Cause::Order, reason: "update to 2.0".into() });
    assert_eq!(recorded, down);
    assert!(matches!(late, Err(CallError::Refused(r)) if r.kind == RefusalKind::ShuttingDown));
    let order = fs::read_to_string(note.path()).unwrap();
    let mut lines: Vec<&str> = order.lines().collect();
    assert_eq!(lines.pop(), Some("node"));
    lines.sort_unstable();
    assert_eq!(lines, ["netsvc.1", "vmm.1"]);
    drop(socket);
}

#[test]
fn lasting_fault_of_the_slot_reboots_with_its_text() {
    let bench = Running::new("fault");
    bench.faults.send("OS-A: block fails verification".into()).unwrap();
    let down = bench.recorded.recv_timeout(LONG).unwrap();
    assert_eq!((down.kind, down.reason.as_str()), (DownKind::Reboot, "OS-A: block fails verification"));
    bench.end();
}

#[test]
fn subscriber_that_does_not_read_is_dropped_and_others_go_on() {
    let mut bench = Running::new("slow");
    let mut lazy = Subscription::connect(&bench.socket).unwrap();
    for n in 0..100 {
        let spec = shell(&format!("u{n}"), "exit 0");
        let (exit, _) = bench.run_to_end(&spec, &[]);
        assert_eq!(exit, Exit::Code(0));
        bench.client.remove(&spec.name).unwrap();
    }
    // The lazy one finds either everything or, after what fitted, the end of the connection; never a wait.
    let mut seen = 0;
    while let Ok(Some(_)) = lazy.try_next() {
        seen += 1;
    }
    assert!(seen > 0);
    bench.end();
}
