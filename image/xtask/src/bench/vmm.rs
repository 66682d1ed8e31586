//! `cargo xtask bench vmm`: what the VMM costs and moves, against the bars it has to reach; writes docs/bench-vmm.md.
//!
//! Two sources: the payload guest on this machine's `/dev/kvm` (native speed), and Linux guests in the nested test (our
//! host kernel in QEMU's software emulation), where there is vhost and a true KVM but time passes slowly.

use crate::workspace::{root, run as output_of};
use crate::{kernel, packages, programs};
use anyhow::{Context, Result};
use clap::Args;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// Options of `bench vmm`.
#[derive(Debug, Args)]
#[command(after_long_help = format!("What the rows of the table are:\n\n{}", METHOD.replace("\n  ", " ")))]
pub struct VmmArgs {
    /// Linux boots, and rounds of network flows, to measure in the emulated machine.
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    runs: u32,
    /// Leave out the emulated machine.
    #[arg(long)]
    native_only: bool,
}

/// Where the table goes.
const TABLE: &str = "docs/bench-vmm.md";
/// Words that pick the nested scenarios which print figures.
const NESTED: &[&str] = &["boot_of_one_vcpu", "four_pinned_vcpus", "iperf3"];

/// What the nested test's lines for us, and its figures in the table, start with.
const ORIGIN: &str = "nested: ";

/// A bar: the figure it is about, and which side of the bar is good.
struct Bar {
    /// As the table of figures has it.
    what: &'static str,
    /// Name of the measured figure.
    figure: &'static str,
    limit: Limit,
    /// The bar in words, with where it comes from.
    words: &'static str,
}

enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

const BARS: &[Bar] = &[
    Bar {
        what: "memory beyond guest RAM: 1 vCPU, 128 MiB Linux guest, idle after boot",
        figure: "nested: memory beyond guest RAM (PSS)",
        limit: Limit::AtMost(3.0),
        words: "3 MiB; measured the same way: Firecracker 1.16 4.1 MiB, Cloud Hypervisor 53 6.7 MiB",
    },
    Bar {
        what: "process start to the guest's first user program",
        figure: "nested: process start to the first user program",
        limit: Limit::AtMost(1256.0),
        words: "0.8 of Firecracker 1.16's 1.57 s, taken on another day's machine (Cloud Hypervisor 53: 1.80 s)",
    },
    Bar {
        what: "own set-up before the first KVM_RUN, no jail",
        figure: "own set-up before the first KVM_RUN (CPU), without jail",
        limit: Limit::AtMost(8.0),
        words: "8 ms CPU",
    },
    Bar {
        what: "own set-up before the first KVM_RUN, jailed",
        figure: "own set-up before the first KVM_RUN (CPU), jailed",
        limit: Limit::AtMost(8.0),
        words: "8 ms CPU",
    },
    Bar {
        what: "net, bytes per CPU second of the data path, vhost-net against our user-space path: TCP to guest",
        figure: "nested: TCP to guest, bytes for each CPU second, vhost-net to user space",
        limit: Limit::AtLeast(2.0),
        words: "2 x",
    },
    Bar {
        what: "net, bytes per CPU second of the data path, vhost-net against our user-space path: TCP from guest",
        figure: "nested: TCP from guest, bytes for each CPU second, vhost-net to user space",
        limit: Limit::AtLeast(2.0),
        words: "2 x",
    },
    Bar {
        what: "net, bytes per CPU second of the data path, vhost-net against our user-space path: UDP to guest",
        figure: "nested: UDP to guest, bytes for each CPU second, vhost-net to user space",
        limit: Limit::AtLeast(2.0),
        words: "2 x",
    },
    Bar {
        what: "net, bytes per CPU second of the data path, vhost-net against our user-space path: UDP from guest",
        figure: "nested: UDP from guest, bytes for each CPU second, vhost-net to user space",
        limit: Limit::AtLeast(2.0),
        words: "2 x",
    },
    Bar {
        what: "4 KiB random reads per CPU second against plain io_uring, O_DIRECT",
        figure: "ratio of the VMM to plain io_uring, O_DIRECT",
        limit: Limit::AtLeast(0.9),
        words: "within 10 %",
    },
    Bar {
        what: "4 KiB random reads per CPU second against plain io_uring, from the page cache",
        figure: "ratio of the VMM to plain io_uring, page cache",
        limit: Limit::AtLeast(0.9),
        words: "within 10 %",
    },
    Bar {
        what: "100 payload VMs: CPU of a start, last ten against first ten",
        figure: "100 VMs: CPU of a start, last to first",
        limit: Limit::AtMost(1.25),
        words: "constant: 1.25 x, what repeated runs differ by",
    },
    Bar {
        what: "100 payload VMs: memory each, beyond the guest RAM touched",
        figure: "100 VMs: memory beyond guest RAM (PSS), each",
        limit: Limit::AtMost(3.0),
        words: "3 MiB",
    },
    Bar {
        what: "100 payload VMs: all stopped",
        figure: "100 VMs: power button to all ended",
        limit: Limit::AtMost(2.0),
        words: "2 s",
    },
    Bar { what: "stripped binary", figure: "program, stripped", limit: Limit::AtMost(3.0), words: "3 MiB" },
];

/// Figures by name, one value for each run, in the order of first mention.
#[derive(Default)]
struct Figures(Vec<Figure>);

struct Figure {
    name: String,
    unit: String,
    values: Vec<f64>,
}

impl Figures {
    /// Takes a line `figure NAME VALUE UNIT` in, its name after `origin`; others are passed over.
    fn read(&mut self, origin: &str, line: &str) {
        let mut parts = line.split('\t');
        if parts.next() != Some("figure") {
            return;
        }
        let (Some(name), Some(Ok(value))) = (parts.next(), parts.next().map(str::parse)) else { return };
        let unit = parts.next().unwrap_or("");
        let name = format!("{origin}{name}");
        match self.0.iter_mut().find(|figure| figure.name == name) {
            Some(figure) => figure.values.push(value),
            None => self.0.push(Figure { name, unit: unit.into(), values: vec![value] }),
        }
    }

    fn get(&self, name: &str) -> Option<&Figure> {
        self.0.iter().find(|figure| figure.name == name)
    }
}

impl Figure {
    /// Minimum, median (the upper of two) and maximum.
    fn spread(&self) -> [f64; 3] {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        [sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]]
    }
}

/// Measures and writes the table.
///
/// # Errors
/// What could not be built, started or written.
pub(super) fn run(args: &VmmArgs) -> Result<ExitCode> {
    // Test's, for the traffic between Linux guests.
    packages::ensure(packages::Need::Test)?;
    let vmm = programs::build_vmm()?;
    let mut figures = Figures::default();
    let mut missing = Vec::new();
    if let Err(e) = native(&vmm, &mut figures) {
        missing.push(format!("payload guest: {e:#}"));
    }
    if args.native_only {
        missing.push("nested: left out by --native-only".into());
    } else if let Err(e) = nested(&vmm, args.runs, &mut figures) {
        missing.push(format!("nested: {e:#}"));
    }
    let text = render(&figures, &missing, &Place::find());
    let path = root().join(TABLE);
    std::fs::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{text}");
    eprintln!("written to {TABLE}");
    Ok(if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(arguments).env("CARGO_TARGET_DIR", programs::target_dir());
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    command
}

/// The payload guest on this machine.
fn native(vmm: &Path, figures: &mut Figures) -> Result<()> {
    let folder = tempfile::tempdir_in(programs::target_dir()).context("cannot make a folder for disk images")?;
    let build = ["build", "--quiet", "--release", "--package", "holdfast-vmm", "--example", "bench"];
    anyhow::ensure!(cargo(&build).status()?.success(), "the measuring program cannot be built");
    let program = programs::target_dir().join("release/examples/bench");
    let output = Command::new(&program).arg(vmm).arg(folder.path()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    String::from_utf8_lossy(&output.stdout).lines().for_each(|line| figures.read("", line));
    anyhow::ensure!(output.status.success(), "ended with {}", output.status);
    Ok(())
}

/// Linux guests in the emulated machine.
fn nested(vmm: &Path, runs: u32, figures: &mut Figures) -> Result<()> {
    for which in [kernel::Kernel::Guest, kernel::Kernel::Host] {
        kernel::build(which, &|line| eprintln!("{line}"))?;
    }
    // What one scenario cannot say, another still can.
    let mut failed = Vec::new();
    for word in NESTED {
        let mut test = cargo(&["test", "--quiet", "--package", "holdfast-vmm", "--test", "nested"]);
        test.env("NESTED_ONLY", word).env("NESTED_HOST", format!("nested.runs={runs}")).env("NESTED_VERBOSE", "1");
        // The same program as on this machine.
        test.env("HOLDFAST_VMM", vmm);
        let output = test.output().context("cannot start cargo")?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().filter_map(|line| line.strip_prefix(ORIGIN)).for_each(|line| figures.read(ORIGIN, line));
        if !output.status.success() {
            eprintln!("{text}");
            failed.push(*word);
        }
    }
    anyhow::ensure!(failed.is_empty(), "the scenarios of {} failed: see above", failed.join(", "));
    Ok(())
}

/// Where and when it was measured.
struct Place {
    date: String,
    commit: String,
    machine: String,
    kernel: String,
    qemu: String,
}

impl Place {
    fn find() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let say = |program: &str, arguments: &[&str]| {
            let text = output_of(Command::new(program).current_dir(root()).args(arguments)).unwrap_or_default();
            text.lines().next().unwrap_or("?").trim().to_string()
        };
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("?");
        let memory = read("/proc/meminfo");
        let kib = memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
        Self {
            date: say("date", &["--utc", "+%Y-%m-%d"]),
            commit: say("git", &["describe", "--always", "--dirty=, changed"]),
            machine: format!(
                "{} x {}, {} GiB",
                std::thread::available_parallelism().map_or(1, usize::from),
                model.trim_start_matches([' ', '\t', ':']),
                kib.unwrap_or(0u64) >> 20
            ),
            kernel: read("/proc/sys/kernel/osrelease").trim().split('-').next().unwrap_or("?").to_string(),
            qemu: say("qemu-system-x86_64", &["--version"]),
        }
    }
}

const METHOD: &str = "\
- Lines without \"nested\" come from the payload guest (`vmm/payload`): the unmodified release program on this machine's
  `/dev/kvm`, guest code in ring 3, so at native speed even where KVM is paravirtual; exits and set-up by KVM are dearer
  there than on hardware. Memory is read from `/proc/PID/smaps` (PSS of everything but the guest's RAM), CPU time from
  `/proc/PID/task/*/schedstat`, set-up time from the VM's own `stats`.
- Block: the guest keeps 32 random reads of 4 KiB in flight in a file of 256 MiB for 2 s, then a plain io_uring loop does
  the same on the same file, eleven times in turn. The CPU time is that of all threads of the VMM but the vCPU (the guest
  spins while it waits, by design), against that of the loop's process but for a thread that spins beside it likewise.
  The VMM's reads leave the file's time of last access alone. The loop's note it, as any program's; \"with O_NOATIME\"
  they do not either, and what is left is what the VMM adds.
- \"nested\" lines come from Linux guests: our host kernel in QEMU's software emulation (TCG, `-cpu EPYC`, one processor),
  the VMM in it, our guest kernel in that. Wall times there depend on the machine's load.
- Net, nested: one guest has a card for each path, vhost-net and user space, each on a bridge with the card of a second
  guest, as an app's cards have bridges to what is outside; iperf3's flows go over them in turn: a ratio is of neighbours
  in one boot. Bytes are those that went over the first guest's tap; the CPU seconds of the data path are those of all
  threads of its VM but the vCPU (device thread, vhost workers), with what the bridge does on them. Plain TCP goes in
  segments of up to 64 KiB. \"in 1514-byte frames\": neither end leaves segmentation to its card (TSO off), so that each
  frame costs; UDP goes so too.
- Each row: minimum, median and maximum over its runs. The verdict is on the median.
";

/// The document.
fn render(figures: &Figures, missing: &[String], place: &Place) -> String {
    let mut text = String::from("# Figures of the VMM\n\n");
    let Place { date, commit, machine, kernel, qemu } = place;
    let _ = writeln!(text, "Written by `cargo xtask bench vmm` on {date} at commit {commit}.\n");
    let _ = writeln!(text, "Machine: {machine}; kernel {kernel}; {qemu}.\n\n{METHOD}");
    for reason in missing {
        let _ = writeln!(text, "Not measured: {}\n", reason.lines().next().unwrap_or(""));
    }
    text.push_str("## Figures to reach\n\n| figure | measured | bar | verdict |\n|---|---|---|---|\n");
    for bar in BARS {
        let (measured, verdict) = judge(bar, figures);
        let _ = writeln!(text, "| {} | {measured} | {} | {verdict} |", bar.what, bar.words);
    }
    text.push_str("\n## All of it\n\n| | minimum | median | maximum | unit | runs |\n|---|--:|--:|--:|---|--:|\n");
    for figure in &figures.0 {
        let [min, median, max] = figure.spread().map(short);
        let Figure { name, unit, values } = figure;
        let _ = writeln!(text, "| {name} | {min} | {median} | {max} | {unit} | {} |", values.len());
    }
    text
}

/// The measured value in words, and whether it is on the right side of the bar.
fn judge(bar: &Bar, figures: &Figures) -> (String, &'static str) {
    let Some(figure) = figures.get(bar.figure) else { return ("not measured".into(), "open") };
    let [min, median, max] = figure.spread();
    let good = match bar.limit {
        Limit::AtMost(limit) => median <= limit,
        Limit::AtLeast(limit) => median >= limit,
    };
    let unit = if figure.unit.is_empty() { String::new() } else { format!(" {}", figure.unit) };
    let spread = if figure.values.len() > 1 { format!(" ({} to {})", short(min), short(max)) } else { String::new() };
    (format!("{}{unit}{spread}", short(median)), if good { "reached" } else { "**missed**" })
}

/// Three significant digits, as far as a table needs them.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(lines: &[&str]) -> Figures {
        let mut figures = Figures::default();
        lines.iter().for_each(|line| figures.read("", line));
        figures
    }

    #[test]
    fn runs_of_one_figure_are_put_together_and_other_lines_passed_over() {
        let figures =
            figures(&["figure\ta\t3\tms", "bench: a", "figure\tb\tx\tms", "figure\ta\t1\tms", "figure\ta\t2\tms"]);
        assert_eq!(figures.0.len(), 1);
        assert_eq!(figures.get("a").unwrap().spread(), [1.0, 2.0, 3.0]);
    }

    #[test]
    fn each_bar_is_reached_missed_or_open() {
        let name = "program, stripped";
        let verdict = |lines: &[&str]| {
            let figures = figures(lines);
            let bar = BARS.iter().find(|bar| bar.figure == name).unwrap();
            judge(bar, &figures).1
        };
        assert_eq!(verdict(&["figure\tprogram, stripped\t1.6\tMiB"]), "reached");
        assert_eq!(verdict(&["figure\tprogram, stripped\t3.1\tMiB"]), "**missed**");
        assert_eq!(verdict(&[]), "open");
    }

    #[test]
    fn the_document_names_place_and_every_bar() {
        let place = Place {
            date: "2026-01-02".into(),
            commit: "abc".into(),
            machine: "m".into(),
            kernel: "k".into(),
            qemu: "q".into(),
        };
        let text = render(
            &figures(&["figure\tratio of the VMM to plain io_uring, page cache\t0.95\t"]),
            &["nested: no QEMU".into()],
            &place,
        );
        for words in ["2026-01-02 at commit abc", "Not measured: nested: no QEMU", "| 0.95 | within 10 % | reached |"] {
            assert!(text.contains(words), "{words:?} not in\n{text}");
        }
        assert!(BARS.iter().all(|bar| text.contains(bar.what)));
    }
}
