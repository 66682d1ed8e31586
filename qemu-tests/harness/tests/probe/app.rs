//! The app of the guest init's tests. `facts` prints what it finds and ends with code 7; `serve` answers on port 80 until SIGTERM and then
//! ends with code 3; `stubborn` ignores SIGTERM. Standard library only.

use std::ffi::c_int;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

unsafe extern "C" {
    fn signal(number: c_int, handler: extern "C" fn(c_int)) -> usize;
}

const SIGTERM: c_int = 15;
static ASKED: AtomicBool = AtomicBool::new(false);

extern "C" fn asked(_: c_int) {
    ASKED.store(true, Ordering::SeqCst);
}

fn say(name: &str, value: impl std::fmt::Display) {
    println!("fact: {name} {value}");
}

fn writable(path: &str) -> bool {
    fs::write(path, "kept").is_ok()
}

fn facts() -> ! {
    say("boots", fs::read_to_string("/srv/volume/boots").unwrap_or_default().len());
    fs::File::options().create(true).append(true).open("/srv/volume/boots").and_then(|mut f| f.write_all(b"x")).unwrap();
    say("cwd", std::env::current_dir().unwrap().display());
    say("args", std::env::args().skip(1).collect::<Vec<_>>().join("|"));
    for (name, value) in std::env::vars() {
        say(&format!("env-{name}"), value);
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    for line in status.lines().filter(|l| ["Uid:", "Gid:", "Groups:"].iter().any(|p| l.starts_with(p))) {
        say("id", line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    for path in ["/srv/volume/file", "/tmp/file", "/dev/shm/file", "/home/app/file", "/etc/file"] {
        say(&format!("writable-{path}"), writable(path));
    }
    for path in ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"] {
        say(path, fs::read_to_string(path).unwrap_or_default().replace('\n', ";"));
    }
    let mut devices: Vec<_> = fs::read_dir("/dev").unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    devices.sort();
    say("devices", devices.join(","));
    let volume = fs::read_to_string("/proc/self/mounts").unwrap();
    for line in volume.lines() {
        say("mount", line);
    }
    let mut out = fs::File::options().write(true).open("/dev/stdout").unwrap();
    writeln!(out, "fact: reopened true").unwrap();
    eprintln!("fact: stderr true");
    println!("holdfast-guest: exit code=0");
    // A process left behind must not keep the VM up.
    std::process::Command::new("/bin/app").arg("stubborn").stdout(std::process::Stdio::null()).spawn().unwrap();
    print!("fact: unfinished line");
    std::io::stdout().flush().unwrap();
    std::process::exit(7);
}

fn main() {
    let mode = std::env::args().nth(1).unwrap_or_default();
    if mode == "facts" {
        facts();
    }
    // SAFETY: the handler only stores to an atomic.
    unsafe { signal(SIGTERM, asked) };
    if mode == "serve" {
        let listener = TcpListener::bind("0.0.0.0:80").unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut stream = stream;
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello from the app\n");
            }
        });
    }
    println!("app: ready");
    loop {
        std::thread::sleep(Duration::from_millis(20));
        if mode == "serve" && ASKED.load(Ordering::SeqCst) {
            println!("app: asked to stop");
            std::process::exit(3);
        }
    }
}
