//! `vmm`: runs one virtual machine. Parse, read the configuration, run, report; or talk to one that runs.

mod cli;

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::FromRawFd;
use std::process::ExitCode;

use cli::{Command, Source};
use holdfast_model::contract::Document as _;
use holdfast_model::contract::end::{End, ExitClass};
use holdfast_model::contract::vm::VmConfig;
use holdfast_unit::LastWords;

fn main() -> ExitCode {
    let words = LastWords::adopt();
    let end = match cli::parse(std::env::args_os().skip(1).collect()) {
        Ok(Command::Help) => return print(cli::HELP),
        Ok(Command::Version) => return print(concat!("vmm ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Command::DefaultCmdline) => return print(&(holdfast_model::contract::vm::default_cmdline() + "\n")),
        Ok(Command::Check(source)) => match read(source) {
            Ok(config) => return print(&format!("{}: good\n", config.name)),
            Err(end) => end,
        },
        Ok(Command::Run(source)) => match read(source) {
            Ok(config) => {
                let end = holdfast_vmm::vm::run(&config, words.fd());
                return finish(&config.name, &end, &words);
            }
            Err(end) => end,
        },
        Ok(Command::Control { socket, action, json }) => match cli::control::run(&socket, action, json) {
            Ok(text) => return print(&text),
            Err(end) => end,
        },
        Ok(Command::Attach { socket, console, replay }) => {
            match cli::attach::run(&socket, console.as_deref(), replay) {
                Ok(()) => return ExitCode::SUCCESS,
                Err(end) => end,
            }
        }
        Err(reason) => End::new(ExitClass::Usage, format!("{reason}; see `vmm --help`")),
    };
    finish("", &end, &words)
}

fn print(text: &str) -> ExitCode {
    // A closed stdout is the reader's choice.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn read(source: Source) -> Result<VmConfig, End> {
    let resource =
        |name: &str, e: std::io::Error| End::new(ExitClass::Resource, format!("config: cannot read {name}: {e}"));
    let (name, mut file) = match source {
        Source::Path(path) => {
            let name = path.display().to_string();
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
    file.take(VmConfig::MAX_BYTES as u64 + 1).read_to_end(&mut text).map_err(|e| resource(&name, e))?;
    holdfast_vmm::config::parse(&text).map_err(|e| End::new(ExitClass::Config, e.to_string()))
}

fn finish(name: &str, end: &End, words: &LastWords) -> ExitCode {
    words.say(end);
    use ExitClass::{GuestError, GuestExit, GuestSignal, PowerOff};
    // What the guest says of itself is on its console already.
    if !matches!(end.class, PowerOff | GuestExit { .. } | GuestSignal { .. } | GuestError) {
        let space = if name.is_empty() { "" } else { " " };
        eprintln!("vmm{space}{name}: {end}");
    }
    end.class.into()
}
