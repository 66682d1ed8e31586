//! `vmm`: runs one virtual machine. Parse, read the configuration, run, report.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::FromRawFd;
use std::process::ExitCode;

use holdfast_vmm::config::{MAX_CONFIG_BYTES, VmConfig};
use holdfast_vmm::exit::{End, ExitClass};

const HELP: &str = "\
vmm: runs one virtual machine on KVM

  vmm --config FILE       run the VM that the JSON file describes
  vmm --config-fd N       the same, read from inherited descriptor N
  vmm --check FILE        only say whether the file is a good configuration
  vmm --default-cmdline   print the kernel command line used when \"cmdline\" is left out
  vmm --help, --version

The smallest useful configuration, guest console on stdout:

  { \"name\": \"demo\", \"vcpus\": 1, \"memory_mib\": 128,
    \"kernel\": {\"path\": \"vmlinux\"}, \"initrd\": {\"path\": \"initrd\"}, \"console\": {} }

and what can be added:

  \"cmdline\": \"console=hvc0 root=/dev/vda\",
  \"disks\":   [{\"id\": \"root\", \"file\": {\"path\": \"root.img\"}, \"format\": \"raw\", \"read_only\": true, \"lock\": true,
              \"limits\": {\"bytes_per_second\": 50000000, \"burst_bytes\": 5000000,
                         \"ops_per_second\": 1000, \"burst_ops\": 100}}],
  \"nets\":    [{\"mac\": \"02:00:00:00:00:01\", \"tap\": {\"name\": \"tap0\"},
              \"vhost\": {\"path\": \"/dev/vhost-net\"}, \"queue_pairs\": 2, \"mtu\": 1500}],
              one queue pair for each vCPU at most; several inherited: {\"fds\": [N, M]}. A cable to another VM is
              \"link\": {\"unix\": {\"fd\": N}} in place of \"tap\". Without vhost, for each direction:
              \"limits\": {\"receive\": {\"bytes_per_second\": 1000000}, \"transmit\": {\"ops_per_second\": 1000}}
  \"rng\": true,
  \"vsock\":   {\"cid\": 3, \"vhost\": {\"path\": \"/dev/vhost-vsock\"}},
  \"balloon\": {\"free_page_reporting\": true, \"deflate_on_oom\": true},
  \"console\": {\"output\": {\"path\": \"console.log\"}, \"input\": {\"fd\": 0}},
  \"serial\":  {},                             16550 at ttyS0, for kernel debugging
  \"control\": {\"path\": \"control.sock\"},       SOCK_SEQPACKET, JSON: {\"do\": \"power_button\"}
  \"jail\":    {\"uid\": 1000, \"gid\": 1000}      needs root to enter

The kernel is an uncompressed ELF vmlinux or a bzImage. Every {\"path\": ..} may be {\"fd\": N}, a descriptor
that the parent opened; then nothing is opened at all.

A disk in use by another VM is refused, unless both have it read_only. Limits may be left out one by one; a burst
is a tenth of a second's worth unless given.

SIGTERM presses the guest's power button.

Exit codes:
   0 guest powered off     10 guest reset: run it again    11 guest misused a device or crashed
  12 stopped from outside  20 configuration                21 file, tap or disk
  22 kernel or initrd      23 KVM                          24 jail       25 host failed
   2 wrong arguments
";

fn main() -> ExitCode {
    let end = match command(std::env::args_os().skip(1).collect()) {
        Command::Print(text) => {
            // A closed stdout is the reader's choice.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Command::Wrong(reason) => End::new(ExitClass::Usage, format!("{reason}; see `vmm --help`")),
        Command::Check(source) => match read(source) {
            Ok(config) => {
                println!("{}: good", config.name);
                return ExitCode::SUCCESS;
            }
            Err(end) => end,
        },
        Command::Run(source) => match read(source) {
            Ok(config) => {
                let end = holdfast_vmm::vm::run(&config);
                return finish(&config.name, &end);
            }
            Err(end) => end,
        },
    };
    finish("", &end)
}

enum Command {
    Run(Source),
    Check(Source),
    Print(String),
    Wrong(String),
}

enum Source {
    Path(OsString),
    Fd(i32),
}

fn command(arguments: Vec<OsString>) -> Command {
    let texts: Vec<&str> = arguments.iter().map(|a| a.to_str().unwrap_or("")).collect();
    match (texts.as_slice(), arguments.get(1)) {
        (["--help" | "-h"], _) => Command::Print(HELP.into()),
        (["--version" | "-V"], _) => Command::Print(format!("vmm {}\n", env!("CARGO_PKG_VERSION"))),
        (["--default-cmdline"], _) => Command::Print(holdfast_vmm::default_cmdline() + "\n"),
        (["--config", _], Some(path)) => Command::Run(Source::Path(path.clone())),
        (["--check", _], Some(path)) => Command::Check(Source::Path(path.clone())),
        (["--config-fd", number], _) => match number.parse() {
            Ok(fd) if fd >= 0 => Command::Run(Source::Fd(fd)),
            _ => Command::Wrong(format!("--config-fd {number:?} is not a descriptor number")),
        },
        ([], _) => Command::Wrong("no configuration given".into()),
        ([first, ..], _) => Command::Wrong(format!("{first:?} is not understood, or lacks its value")),
    }
}

fn read(source: Source) -> Result<VmConfig, End> {
    let resource =
        |name: &str, e: std::io::Error| End::new(ExitClass::Resource, format!("config: cannot read {name}: {e}"));
    let (name, mut file) = match source {
        Source::Path(path) => {
            let name = path.to_string_lossy().into_owned();
            let file = File::open(&path).map_err(|e| resource(&name, e))?;
            (name, file)
        }
        Source::Fd(fd) => {
            let name = format!("inherited fd {fd}");
            // SAFETY: asks for a flag of a number; fails for one that is not open.
            if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
                return Err(resource(&name, std::io::Error::last_os_error()));
            }
            // SAFETY: it is open, and the parent gave it to us for this one use.
            (name, unsafe { File::from_raw_fd(fd) })
        }
    };
    // A memfd is often passed with its offset at the end; a pipe has none.
    let _ = file.rewind();
    let mut text = Vec::new();
    file.take(MAX_CONFIG_BYTES as u64 + 1).read_to_end(&mut text).map_err(|e| resource(&name, e))?;
    VmConfig::from_json(&text).map_err(|e| End::new(ExitClass::Config, e.to_string()))
}

fn finish(name: &str, end: &End) -> ExitCode {
    if end.class != ExitClass::PowerOff {
        let space = if name.is_empty() { "" } else { " " };
        eprintln!("vmm{space}{name}: {end}");
    }
    end.class.into()
}
