//! The demo's app: a small web server that tells where it runs and shows whether what it writes survives.
//!
//! Principles:
//! 1. Standard library only and one static file, so that its image is the program and nothing else.
//! 2. Every request is one line on stdout: what a test sees in the app's log is what was asked.
//! 3. Bounded: request heads of 8 KiB, five seconds for each, at most 64 connections at a time; a reader that takes nothing for
//!    a minute is let go.
//!
//! | path | answer |
//! |---|---|
//! | `/` | app, version, host name, greeting (`GREETING`), processors, uptime, requests |
//! | `/health` | `ok` |
//! | `/env?name=N` | the environment variable, 404 if it is not set |
//! | `/count` | adds one to the counter file and shows it |
//! | `/bulk?bytes=N` | so many bytes of a stream that is always the same ([`bulk`]), at most 64 MiB |
//! | `/exit?code=N` | answers, then ends with this code |
//! | `/journal/start` | begins to write blocks, generation after generation |
//! | `/journal` | the last generation that fsync has confirmed |
//! | `/journal/verify?confirmed=N` | the newest generation in the file, 500 if anything up to N is missing or broken |
//!
//! SIGTERM ends it at once: the default action is kept, there is nothing to tidy up.
//!
//! Settings come from the environment: `PORT` (80), `DATA_DIR` (`/var/lib/webapp`), `GREETING`, `APP_NAME`.

mod bulk;
mod journal;

use journal::Journal;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const MAX_HEAD: usize = 8 * 1024;
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// Longest time without a byte taken.
const TAKE_DEADLINE: Duration = Duration::from_secs(60);
const MAX_CONNECTIONS: u64 = 64;

fn main() -> ExitCode {
    let port = match setting("PORT").map(|text| text.parse::<u16>()) {
        None => 80,
        Some(Ok(port)) => port,
        Some(Err(error)) => {
            eprintln!("webapp: PORT: expected 0 to 65535: {error}");
            return ExitCode::from(2);
        }
    };
    let listener = match TcpListener::bind(("0.0.0.0", port)) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("webapp: port {port}: cannot listen: {error}");
            return ExitCode::from(1);
        }
    };
    let app = Arc::new(App::new());
    say(&format!(
        "webapp {} listening on {}",
        env!("CARGO_PKG_VERSION"),
        listener.local_addr().map_or_else(|_| port.to_string(), |addr| addr.to_string())
    ));
    loop {
        match listener.accept() {
            Ok((stream, _)) => Arc::clone(&app).spawn(stream),
            // No file descriptor free, most likely: wait for one.
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// One line of the app's log. A reader that went away is no reason to stop serving.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

struct App {
    started: Instant,
    requests: AtomicU64,
    connections: AtomicU64,
    counter_path: PathBuf,
    counter: Mutex<()>,
    journal: Arc<Journal>,
}

/// What goes back.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    text: String,
    /// Bytes of the stream behind the text.
    bulk: u64,
    /// Ends the program once the answer is out.
    exit: Option<u8>,
}

impl Answer {
    fn new(status: u16, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), bulk: 0, exit: None }
    }
}

impl App {
    fn new() -> Self {
        let dir = setting("DATA_DIR").unwrap_or_else(|| "/var/lib/webapp".into());
        Self::with_counter(Path::new(&dir).join("counter"))
    }

    fn with_counter(counter_path: PathBuf) -> Self {
        Self {
            started: Instant::now(),
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            journal: Journal::new(counter_path.with_file_name("journal")),
            counter_path,
            counter: Mutex::new(()),
        }
    }

    fn spawn(self: Arc<Self>, stream: TcpStream) {
        if self.connections.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let app = Arc::clone(&self);
        let spawned = std::thread::Builder::new().stack_size(256 * 1024).spawn(move || {
            app.serve(stream);
            app.connections.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            self.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn serve(&self, mut stream: TcpStream) {
        let peer = stream.peer_addr().map_or_else(|_| "?".into(), |addr| addr.to_string());
        let Ok(head) = read_head(&mut stream) else {
            return;
        };
        let (line, answer) = match parse_head(&head) {
            Some((method, target)) => (format!("{method} {target}"), self.answer(method, target)),
            None => ("malformed".into(), Answer::new(400, "malformed request\n")),
        };
        say(&format!("request {line} from {peer}: {}", answer.status));
        let reason = match answer.status {
            200 => "OK",
            404 => "Not Found",
            405 => "Method Not Allowed",
            500 => "Internal Server Error",
            _ => "Bad Request",
        };
        let kind = if answer.bulk > 0 { "application/octet-stream" } else { "text/plain; charset=utf-8" };
        let head = format!(
            "HTTP/1.1 {} {reason}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            answer.status,
            answer.text.len() as u64 + answer.bulk
        );
        let (text, bulk) = if line.starts_with("HEAD ") { ("", 0) } else { (answer.text.as_str(), answer.bulk) };
        let _ = stream
            .set_write_timeout(Some(TAKE_DEADLINE))
            .and_then(|()| stream.write_all(head.as_bytes()))
            .and_then(|()| stream.write_all(text.as_bytes()))
            .and_then(|()| bulk::write(&mut stream, bulk));
        let _ = stream.shutdown(std::net::Shutdown::Write);
        if let Some(code) = answer.exit {
            say(&format!("exit as asked with code {code}"));
            std::process::exit(i32::from(code));
        }
    }

    fn answer(&self, method: &str, target: &str) -> Answer {
        let count = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        if !matches!(method, "GET" | "HEAD") {
            return Answer::new(405, "only GET and HEAD\n");
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        match path {
            "/" => Answer::new(200, self.about(count)),
            "/health" => Answer::new(200, "ok\n"),
            "/env" => match parameter(query, "name").and_then(|name| std::env::var(name).ok()) {
                Some(value) => Answer::new(200, format!("{value}\n")),
                None => Answer::new(404, "not set\n"),
            },
            "/count" => match self.count() {
                Ok(count) => Answer::new(200, format!("{count}\n")),
                Err(error) => Answer::new(500, format!("{}: {error}\n", self.counter_path.display())),
            },
            "/bulk" => match parameter(query, "bytes").map(str::parse) {
                Some(Ok(bytes)) if bytes <= bulk::MAX_BYTES => Answer { bulk: bytes, ..Answer::new(200, "") },
                _ => Answer::new(400, format!("bytes: expected 0 to {}\n", bulk::MAX_BYTES)),
            },
            "/exit" => match parameter(query, "code").map(|code| code.parse::<u8>()) {
                None => Answer { exit: Some(0), ..Answer::new(200, "bye\n") },
                Some(Ok(code)) => Answer { exit: Some(code), ..Answer::new(200, "bye\n") },
                Some(Err(_)) => Answer::new(400, "code: expected 0 to 255\n"),
            },
            "/journal" => Answer::new(200, format!("{}\n", self.journal.confirmed())),
            "/journal/start" => self.of_journal(self.journal.start().map(|()| "started".into())),
            "/journal/verify" => match parameter(query, "confirmed").map(str::parse) {
                Some(Ok(confirmed)) => self.of_journal(self.journal.verify(confirmed).map(|newest| newest.to_string())),
                _ => Answer::new(400, "confirmed: expected a number\n"),
            },
            _ => Answer::new(
                404,
                "no such page; there are /, /health, /env?name=, /count, /bulk?bytes=, /exit?code=, /journal, \
                 /journal/start, /journal/verify?confirmed=\n",
            ),
        }
    }

    fn of_journal(&self, outcome: io::Result<String>) -> Answer {
        match outcome {
            Ok(text) => Answer::new(200, format!("{text}\n")),
            Err(error) => Answer::new(500, format!("{}: {error}\n", self.journal.path().display())),
        }
    }

    fn about(&self, count: u64) -> String {
        let name = setting("APP_NAME").unwrap_or_else(|| "webapp".into());
        let greeting = setting("GREETING").unwrap_or_else(|| "Hello from Holdfast".into());
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{greeting}");
        let _ = writeln!(text, "app: {name}\nversion: {}", env!("CARGO_PKG_VERSION"));
        let _ = writeln!(text, "host: {}", host.trim());
        let _ = writeln!(text, "cpus: {}", std::thread::available_parallelism().map_or(0, usize::from));
        let _ = writeln!(text, "uptime_seconds: {}", self.started.elapsed().as_secs());
        let _ = writeln!(text, "requests: {count}");
        text
    }

    /// Adds one to the counter file. The new value replaces the old in one step, so a power cut loses at most one.
    fn count(&self) -> io::Result<u64> {
        let _one_at_a_time = self.counter.lock().unwrap_or_else(PoisonError::into_inner);
        let old = match std::fs::read_to_string(&self.counter_path) {
            Ok(text) => text.trim().parse().unwrap_or(0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0u64,
            Err(error) => return Err(error),
        };
        let new = old.wrapping_add(1);
        if let Some(dir) = self.counter_path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let temporary = self.counter_path.with_extension("new");
        let mut file = std::fs::File::create(&temporary)?;
        writeln!(file, "{new}")?;
        file.sync_all()?;
        std::fs::rename(&temporary, &self.counter_path)?;
        Ok(new)
    }
}

/// Reads up to the empty line.
fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + HEAD_DEADLINE;
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || head.len() > MAX_HEAD {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => head.extend_from_slice(&buffer[..count]),
        }
    }
    Ok(head)
}

/// Method and target of the first line.
fn parse_head(head: &[u8]) -> Option<(&str, &str)> {
    let end = head.windows(2).position(|window| window == b"\r\n")?;
    let line = std::str::from_utf8(&head[..end]).ok()?;
    let mut words = line.split(' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some(method), Some(target), Some(version), None)
            if version.starts_with("HTTP/1.") && target.starts_with('/') && !target.chars().any(char::is_control) =>
        {
            Some((method, target))
        }
        _ => None,
    }
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: &str) -> App {
        let dir = std::env::temp_dir().join(format!("webapp-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        App::with_counter(dir.join("data/counter"))
    }

    #[test]
    fn the_counter_survives_a_restart() {
        let first = app("counter");
        assert_eq!(first.answer("GET", "/count"), Answer::new(200, "1\n"));
        assert_eq!(first.answer("GET", "/count"), Answer::new(200, "2\n"));
        let second = App::with_counter(first.counter_path.clone());
        assert_eq!(second.answer("GET", "/count"), Answer::new(200, "3\n"));
    }

    #[test]
    fn pages_answer_and_others_do_not() {
        let app = app("pages");
        assert_eq!(app.answer("GET", "/health").text, "ok\n");
        let page = app.answer("GET", "/").text;
        assert!(page.contains("requests: 2"), "{page}");
        let cpus = std::thread::available_parallelism().unwrap();
        assert!(page.contains(&format!("\ncpus: {cpus}\n")), "{page}");
        assert_eq!(app.answer("GET", "/env?name=SURELY_NOT_SET").status, 404);
        assert!(!app.answer("GET", "/env?name=PATH").text.is_empty());
        assert_eq!(app.answer("GET", "/exit?code=7").exit, Some(7));
        assert_eq!(app.answer("GET", "/exit?code=700").status, 400);
        assert_eq!(app.answer("GET", "/bulk?bytes=70000").bulk, 70000);
        for wrong in ["/bulk", "/bulk?bytes=-1", "/bulk?bytes=67108865"] {
            assert_eq!((app.answer("GET", wrong).status, app.answer("GET", wrong).bulk), (400, 0), "{wrong}");
        }
        assert_eq!(app.answer("POST", "/").status, 405);
        assert_eq!(app.answer("GET", "/nothing").status, 404);
        assert_eq!(app.answer("GET", "/journal").text, "0\n");
        assert_eq!(app.answer("GET", "/journal/verify?confirmed=x").status, 400);
        assert_eq!(app.answer("GET", "/journal/verify?confirmed=1").status, 500, "there is no file");
    }

    #[test]
    fn only_whole_request_lines_are_understood() {
        assert_eq!(parse_head(b"GET /a?b HTTP/1.1\r\nhost: x\r\n\r\n"), Some(("GET", "/a?b")));
        for bad in [
            &b"GET /\r\n\r\n"[..],
            b"GET x HTTP/1.1\r\n",
            b"GET / HTTP/1.1",
            b"\xff / HTTP/1.1\r\n",
            b"GET /\x07 HTTP/1.1\r\n",
        ] {
            assert_eq!(parse_head(bad), None);
        }
    }
}
