//! What guests do with their cards.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use super::{ASK_PORT, ECHO_PORT, IPERF, flow};
use crate::guest::{registers, say};
use crate::support::{configure, send_frame_by_frame};

fn word(name: &str) -> Option<String> {
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    cmdline.split_whitespace().find_map(|word| word.strip_prefix(name)).map(str::to_string)
}

/// Gives `eth0`, `eth1` and so on their addresses, serves iperf3 and echoes; with a peer, asks that for its iperf3 and says what came out.
pub fn play() {
    let _ = std::fs::create_dir_all("/tmp");
    for (n, address) in word("nested.address=").unwrap_or_default().split(',').enumerate() {
        let Ok(address) = address.parse() else { return say("no address") };
        if let Err(e) = configure(&format!("eth{n}"), address) {
            return say(&format!("eth{n}: {e}"));
        }
    }
    for name in word("nested.frames=").iter().flat_map(|names| names.split(',')) {
        if let Err(e) = send_frame_by_frame(name) {
            return say(&format!("{name}: {e}"));
        }
    }
    let server = Command::new(IPERF).args(["--server"]).stdout(std::process::Stdio::null()).spawn();
    std::thread::spawn(echo);
    std::thread::spawn(run_clients);
    // Until it listens.
    std::thread::sleep(Duration::from_millis(300));
    let queues = std::fs::read_dir("/sys/class/net/eth0/queues").into_iter().flatten().flatten();
    let queues = queues.filter(|q| q.file_name().to_string_lossy().starts_with("rx-")).count();
    say(&format!("ready {queues} queues, iperf3 {}", if server.is_ok() { "serves" } else { "is missing" }));
    if let Some(peer) = word("nested.peer=") {
        ask(&peer, &["--time", "2"]);
        ask(&peer, &["--time", "2", "--reverse"]);
        while word("nested.again=").is_some() {
            ask(&peer, &["--time", "1", "--connect-timeout", "1000"]);
        }
    }
    loop {
        std::thread::sleep(Duration::from_millis(500));
        say(&format!("interrupts {}", received_interrupts()));
    }
}

/// Lets iperf3 talk with that of `peer`, and says what came out.
fn ask(peer: &str, way: &[&str]) {
    let output = Command::new(IPERF).args(["--json", "--client", peer]).args(way).output();
    match output.map_err(|e| e.to_string()).and_then(|output| flow(&output.stdout)) {
        Ok(flow) => say(&format!("flow {} {}", flow.bytes, flow.seconds)),
        Err(e) => say(&format!("flow FAILED {e}")),
    }
}

/// Interrupts of each receive queue, in words.
fn received_interrupts() -> String {
    let table = std::fs::read_to_string("/proc/interrupts").unwrap_or_default();
    let of_line = |line: &str| -> u64 { line.split_whitespace().skip(1).map_while(|n| n.parse::<u64>().ok()).sum() };
    let lines = table.lines().filter(|line| line.contains("-input."));
    lines.map(|line| of_line(line).to_string()).collect::<Vec<_>>().join(" ")
}

fn echo() {
    let Ok(listener) = TcpListener::bind(("0.0.0.0", ECHO_PORT)) else { return };
    for mut stream in listener.incoming().flatten() {
        let _ = stream.set_nodelay(true);
        let mut byte = [0];
        while stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {}
    }
}

/// Runs the iperf3 client as it is asked.
fn run_clients() {
    let Ok(listener) = TcpListener::bind(("0.0.0.0", ASK_PORT)) else { return };
    for stream in listener.incoming().flatten() {
        let mut words = String::new();
        let mut stream = BufReader::new(stream);
        if stream.read_line(&mut words).is_ok() {
            let output = Command::new(IPERF).arg("--json").args(words.split_whitespace()).output();
            let _ = stream.get_mut().write_all(&output.map(|output| output.stdout).unwrap_or_default());
        }
    }
}

/// Takes the card away from its driver and gives it rings where none are.
pub fn misuse_rings() {
    let rings = word("nested.rings=").unwrap_or_default();
    // Descriptors, available, used: guest physical addresses.
    let addresses: [u64; 3] = match rings.as_str() {
        // Kernel text: it is RAM, but no available index makes sense there.
        "text" => [0x1000, 0x100_0000, 0x4000],
        _ => [0x1000, 0x7000_0000, 0x4000],
    };
    for entry in std::fs::read_dir("/sys/bus/virtio/drivers/virtio_net").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("virtio") {
            let unbound = File::create("/sys/bus/virtio/drivers/virtio_net/unbind")
                .and_then(|mut unbind| unbind.write_all(name.as_bytes()));
            say(&format!("unbound {name}: {unbound:?}"));
        }
    }
    say(&format!("misuse {rings}"));
    std::thread::sleep(Duration::from_millis(200));
    registers("0x1041", |map| {
        // virtio 1.3 §4.1.4.3: status @0x14, features @8 and @0xc, queue registers from @0x16.
        map.write_u8(0x14, 0);
        map.write_u8(0x14, 1 | 2);
        map.write_u32(0x08, 1);
        map.write_u32(0x0c, 1);
        map.write_u8(0x14, 1 | 2 | 8);
        for queue in 0..2u16 {
            map.write(0x16, queue);
            map.write(0x18, 256);
            for (register, address) in [0x20, 0x28, 0x30].into_iter().zip(addresses) {
                map.write_u32(register, address as u32);
                map.write_u32(register + 4, (address >> 32) as u32);
            }
            map.write(0x1c, 1);
        }
        map.write_u8(0x14, 1 | 2 | 8 | 4);
        // Doorbells, four bytes apart.
        for queue in 0..2 {
            map.write(0x3000 + 4 * queue, queue as u16);
        }
    });
}
