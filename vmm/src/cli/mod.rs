//! The command line: what it may say ([`parse`], pure), and what the commands of a running VM do ([`control`],
//! [`attach`]).

pub mod attach;
pub mod control;
mod tty;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

/// What `--help` prints.
pub const HELP: &str = include_str!("help.txt");
/// How long `stop` waits when nothing is said.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Run the VM of a configuration.
    Run(Source),
    /// Look at a configuration only.
    Check(Source),
    /// Print the kernel command line of a configuration without one.
    DefaultCmdline,
    /// Print [`HELP`].
    Help,
    /// Print the version.
    Version,
    /// Ask a VM for something.
    Control {
        /// Its control socket.
        socket: PathBuf,
        /// What.
        action: Action,
        /// Print the reply as it came.
        json: bool,
    },
    /// Become a VM's console.
    Attach {
        /// Its control socket.
        socket: PathBuf,
        /// Which; the first when left out.
        console: Option<String>,
        /// Earlier output too.
        replay: bool,
    },
}

/// Where a configuration is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// In a file.
    Path(PathBuf),
    /// Behind an inherited descriptor.
    Fd(i32),
}

/// What to ask a VM for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Whether it is there.
    Ping,
    /// Counters.
    Stats,
    /// To halt.
    Pause,
    /// To go on.
    Resume,
    /// To press the power button.
    PowerButton,
    /// To press it, and to end by force after this time.
    Stop(Duration),
}

/// Options, whether each has a value, and the commands it goes with; a command goes with itself.
const OPTIONS: [(&str, bool, &[&str]); 12] = [
    ("--config", true, &["--config"]),
    ("--config-fd", true, &["--config-fd"]),
    ("--check", true, &["--check"]),
    ("--default-cmdline", false, &["--default-cmdline"]),
    ("--help", false, &["--help"]),
    ("--version", false, &["--version"]),
    ("--control", true, &["--control"]),
    ("--attach", true, &["--attach"]),
    ("--json", false, &["--control"]),
    ("--deadline", true, &["--control"]),
    ("--console", true, &["--attach"]),
    ("--no-replay", false, &["--attach"]),
];

/// Options as given, each at most once, and the words that are none.
struct Given {
    options: Vec<(&'static str, OsString)>,
    words: Vec<OsString>,
}

impl Given {
    /// Options may be `--name value` or `--name=value`; `-h` and `-V` are `--help` and `--version`.
    fn sort(arguments: Vec<OsString>) -> Result<Self, String> {
        let mut given = Given { options: Vec::new(), words: Vec::new() };
        let mut arguments = arguments.into_iter().peekable();
        while let Some(argument) = arguments.next() {
            let bytes: &[u8] = match argument.as_bytes() {
                b"-h" => b"--help",
                b"-V" => b"--version",
                bytes => bytes,
            };
            if !bytes.starts_with(b"-") {
                given.words.push(argument);
                continue;
            }
            let mut parts = bytes.splitn(2, |b| *b == b'=');
            let (name, inline) = (parts.next().unwrap_or_default(), parts.next());
            let Some((name, has_value, _)) = OPTIONS.iter().find(|(n, ..)| n.as_bytes() == name) else {
                return Err(format!("{:?} is not an option", String::from_utf8_lossy(name)));
            };
            let value = match (inline, has_value) {
                (Some(value), true) => OsStr::from_bytes(value).to_owned(),
                (Some(_), false) => return Err(format!("{name} takes no value")),
                (None, false) => OsString::new(),
                (None, true) => arguments
                    .next_if(|next| !next.as_bytes().starts_with(b"--"))
                    .ok_or_else(|| format!("{name} lacks its value"))?,
            };
            if given.get(name).is_some() {
                return Err(format!("{name} is given twice"));
            }
            given.options.push((name, value));
        }
        Ok(given)
    }

    fn get(&self, name: &str) -> Option<&OsString> {
        self.options.iter().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }
}

/// Reads the arguments after the program's name.
///
/// # Errors
/// What is wrong, in words.
pub fn parse(arguments: Vec<OsString>) -> Result<Command, String> {
    let given = Given::sort(arguments)?;
    if given.has("--help") {
        return Ok(Command::Help);
    }
    let is_command = |name: &str| OPTIONS.iter().any(|(n, _, with)| *n == name && with.contains(&name));
    let mut commands = given.options.iter().filter(|(name, _)| is_command(name));
    let Some((command, value)) = commands.next() else {
        return Err("no configuration given".into());
    };
    if let Some((second, _)) = commands.next() {
        return Err(format!("{command} and {second} do not go together"));
    }
    let stray =
        given.options.iter().find(|(name, _)| OPTIONS.iter().any(|(n, _, with)| n == name && !with.contains(command)));
    if let Some((name, _)) = stray {
        return Err(format!("{name} does not go with {command}"));
    }
    let words = if *command == "--control" { 1 } else { 0 };
    if let Some(word) = given.words.get(words) {
        return Err(format!("{word:?} is not understood"));
    }
    Ok(match *command {
        "--config" => Command::Run(Source::Path(value.into())),
        "--config-fd" => Command::Run(Source::Fd(descriptor(value)?)),
        "--check" => Command::Check(Source::Path(value.into())),
        "--default-cmdline" => Command::DefaultCmdline,
        "--control" => Command::Control { socket: value.into(), action: action(&given)?, json: given.has("--json") },
        "--attach" => Command::Attach {
            socket: value.into(),
            console: given.get("--console").map(|name| name.to_string_lossy().into_owned()),
            replay: !given.has("--no-replay"),
        },
        _ => Command::Version,
    })
}

fn descriptor(value: &OsStr) -> Result<i32, String> {
    let number = value.to_str().and_then(|text| text.parse().ok()).filter(|fd| *fd >= 0);
    number.ok_or_else(|| format!("--config-fd is {value:?}, expected a descriptor number"))
}

fn action(given: &Given) -> Result<Action, String> {
    let word = given.words.first().and_then(|word| word.to_str()).unwrap_or("");
    let action = match word {
        "ping" => Action::Ping,
        "stats" => Action::Stats,
        "pause" => Action::Pause,
        "resume" => Action::Resume,
        "power-button" => Action::PowerButton,
        "stop" => Action::Stop(deadline(given.get("--deadline"))?),
        _ => {
            let expected = "ping, stats, pause, resume, power-button or stop behind the socket";
            return Err(format!("--control expects {expected}, found {word:?}"));
        }
    };
    if given.has("--deadline") && !matches!(action, Action::Stop(_)) {
        return Err(format!("--deadline goes with stop, not with {word}"));
    }
    Ok(action)
}

fn deadline(value: Option<&OsString>) -> Result<Duration, String> {
    let Some(value) = value else {
        return Ok(STOP_DEADLINE);
    };
    let seconds =
        value.to_str().and_then(|text| text.parse().ok()).filter(|seconds| (0.0..=86_400.0).contains(seconds));
    let seconds: f64 = seconds.ok_or_else(|| format!("--deadline is {value:?}, expected 0 to 86400 seconds"))?;
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(OsString::from).collect())
    }

    #[test]
    fn each_command_is_read() {
        let source = || Source::Path("f.json".into());
        let socket = || PathBuf::from("/run/c");
        let control = |action, json| Command::Control { socket: socket(), action, json };
        let attach = |console: Option<&str>, replay| Command::Attach {
            socket: socket(),
            console: console.map(str::to_owned),
            replay,
        };
        for (line, command) in [
            ("--config f.json", Command::Run(source())),
            ("--config=f.json", Command::Run(source())),
            ("--config-fd 3", Command::Run(Source::Fd(3))),
            ("--check f.json", Command::Check(source())),
            ("--default-cmdline", Command::DefaultCmdline),
            ("-V", Command::Version),
            ("--config f.json -h", Command::Help),
            ("--control /run/c ping", control(Action::Ping, false)),
            ("--control /run/c --json stats", control(Action::Stats, true)),
            ("--control /run/c power-button", control(Action::PowerButton, false)),
            ("--control /run/c stop", control(Action::Stop(STOP_DEADLINE), false)),
            ("--control /run/c stop --deadline 1.5", control(Action::Stop(Duration::from_millis(1500)), false)),
            ("--attach /run/c", attach(None, true)),
            ("--attach /run/c --console serial --no-replay", attach(Some("serial"), false)),
        ] {
            assert_eq!(read(line), Ok(command), "{line}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (line, word) in [
            ("", "no configuration"),
            ("f.json", "no configuration"),
            ("--confg f.json", "\"--confg\" is not an option"),
            ("--config", "--config lacks its value"),
            ("--config --check f", "--config lacks its value"),
            ("--config a --config b", "given twice"),
            ("--config a --check b", "do not go together"),
            ("--config a b", "\"b\" is not understood"),
            ("--config a --json", "--json does not go with --config"),
            ("--config-fd x", "expected a descriptor number"),
            ("--config-fd -1", "expected a descriptor number"),
            ("--help=x", "takes no value"),
            ("--control /run/c", "expects ping"),
            ("--control /run/c dance", "found \"dance\""),
            ("--control /run/c ping --deadline 3", "goes with stop"),
            ("--control /run/c stop --deadline soon", "expected 0 to 86400"),
            ("--control /run/c stop --deadline nan", "expected 0 to 86400"),
            ("--control /run/c ping stats", "\"stats\" is not understood"),
        ] {
            let reason = read(line).unwrap_err();
            assert!(reason.contains(word), "{line}: {word:?} not in {reason:?}");
        }
    }

    #[test]
    fn help_names_each_option() {
        for (name, ..) in OPTIONS {
            assert!(HELP.contains(name), "{name}");
        }
    }
}
