//! Seeds of what guests and configurations give the VMM.

use super::{Seeds, texts};

/// A descriptor table, an available ring and a request header where the harness of the devices puts them: the same 4 KiB again
/// and again, so the table of each queue is at a multiple of it.
#[must_use]
pub fn rings() -> Seeds {
    let mut memory = vec![0u8; 4096];
    // Three chained descriptors: header (read), data (write), status (write).
    for (n, (address, length, flags, next)) in
        [(0x3800u64, 16u32, 1u16, 1u16), (0x4a00, 512, 3, 2), (0x5c00, 1, 2, 0)].into_iter().enumerate()
    {
        let at = n * 16;
        memory[at..at + 8].copy_from_slice(&address.to_le_bytes());
        memory[at + 8..at + 12].copy_from_slice(&length.to_le_bytes());
        memory[at + 12..at + 14].copy_from_slice(&flags.to_le_bytes());
        memory[at + 14..at + 16].copy_from_slice(&next.to_le_bytes());
    }
    // Available ring: index 1, first entry descriptor 0.
    memory[0x402] = 1;
    let mut writes = memory.clone();
    writes[0x800] = 1;
    writes[0x1c] = 1;
    // Without event index and indirect descriptors (bits 29 and 28), the same request again after each round.
    let mut again = memory.clone();
    again[0xff0..0xff4].fill(1);
    again[0xffb] = 0x30;
    // The same three descriptors in an indirect table.
    let mut indirect = memory.clone();
    indirect.copy_within(0..48, 0xe00);
    indirect[..16].copy_from_slice(&[0, 0x3e, 0, 0, 0, 0, 0, 0, 48, 0, 0, 0, 4, 0, 0, 0]);
    vec![memory, writes, again, indirect]
}

/// Rings of a network card: of frames, and of its control queue with a command for two queue pairs.
#[must_use]
pub fn net_rings() -> Seeds {
    let mut seeds = rings();
    let mut memory = vec![0u8; 4096];
    // Two chained descriptors: the command (read), the answer (write).
    for (n, (address, length, flags)) in [(0x3c00u64, 4u32, 1u16), (0x4d00, 1, 2)].into_iter().enumerate() {
        memory[n * 16..n * 16 + 8].copy_from_slice(&address.to_le_bytes());
        memory[n * 16 + 8..n * 16 + 12].copy_from_slice(&length.to_le_bytes());
        memory[n * 16 + 12..n * 16 + 14].copy_from_slice(&flags.to_le_bytes());
    }
    memory[14] = 1;
    memory[0x402] = 1;
    memory[0xc00..0xc04].copy_from_slice(&[4, 0, 2, 0]);
    seeds.push(memory);
    // One receive buffer of 2 KiB for each pair.
    let mut memory = vec![0u8; 4096];
    memory[..8].copy_from_slice(&0x1_0000u64.to_le_bytes());
    memory[8..12].copy_from_slice(&2048u32.to_le_bytes());
    memory[12] = 2;
    memory[0x402] = 1;
    seeds.push(memory);
    seeds
}

/// [`rings`] with requests of a disk: also a discard and a write-zeroes.
#[must_use]
pub fn block_rings() -> Seeds {
    let mut seeds = rings();
    let Some(write) = seeds.get(1).cloned() else {
        return seeds;
    };
    // (type, flags of the range)
    for (kind, flags) in [(11u8, 0u8), (13, 1)] {
        let mut memory = write.clone();
        memory[0x800] = kind;
        // The second descriptor holds one range of 16 bytes: 8 sectors from sector 2 on.
        memory[0x18..0x1a].copy_from_slice(&16u16.to_le_bytes());
        memory[0xa00] = 2;
        memory[0xa08] = 8;
        memory[0xa0c] = flags;
        seeds.push(memory);
    }
    seeds
}

/// Two pages that the harness of the devices repeats: the even one is under the transmit queues, with control messages of a
/// console's driver, the odd one under the receive queues, with buffers.
#[must_use]
pub fn console() -> Seeds {
    let mut memory = vec![0u8; 2 * 4096];
    // Device ready, port 1 ready, port 1 open (id, event, value), and buffers for what the device answers.
    let messages: [(u32, u16); 3] = [(u32::MAX, 0), (1, 3), (1, 6)];
    for (n, (id, event)) in messages.into_iter().enumerate() {
        let (message, transmit, receive) = (0x300 + 8 * n, 16 * n, 4096 + 16 * n);
        memory[message..message + 4].copy_from_slice(&id.to_le_bytes());
        memory[message + 4..message + 6].copy_from_slice(&event.to_le_bytes());
        memory[message + 6] = 1;
        memory[transmit..transmit + 8].copy_from_slice(&(message as u64).to_le_bytes());
        memory[transmit + 8] = 8;
        memory[receive..receive + 8].copy_from_slice(&(0x3_0000 + 0x100 * n as u64).to_le_bytes());
        // 256 bytes that the device writes.
        memory[receive + 9] = 1;
        memory[receive + 12] = 2;
        for page in [0, 4096] {
            memory[page + 0x402] = 3;
            memory[page + 0x404 + 2 * n] = n as u8;
        }
    }
    // The eighth write to the configuration space: `emerg_wr`.
    memory[63..72].copy_from_slice(&[0, 0, 0, 8, b'!', 0, 0, 0, 0]);
    [rings(), vec![memory]].concat()
}

/// Register accesses: offset, width, value.
#[must_use]
pub fn accesses() -> Seeds {
    vec![
        vec![4, 0, 6, 0, 0, 0, 0x10, 0, 0xff, 0xff, 0xff, 0xff, 0x3c, 0, 1, 0, 0, 0],
        (0..96u8).collect(),
        vec![1, 20, 0, 1, 1, 20, 0, 3, 1, 22, 0, 0, 0, 4, 0, 0, 1, 28, 0, 1],
    ]
}

/// How a driver brings each kind of function up: the function, then accesses of 12 bytes (way, offset, width, value).
#[must_use]
pub fn bring_up() -> Seeds {
    const WRITE: u8 = 3;
    let mut steps = Vec::new();
    let mut write = |offset: u16, width: u8, value: u64| {
        steps.extend([WRITE, offset.to_le_bytes()[0], offset.to_le_bytes()[1], width]);
        steps.extend(value.to_le_bytes());
    };
    // Status, features (VERSION_1, INDIRECT_DESC, EVENT_IDX), status.
    for (offset, width, value) in [(0x14, 0, 3u64), (0x08, 2, 0), (0x0c, 2, 3 << 28), (0x08, 2, 1), (0x0c, 2, 1)] {
        write(offset, width, value);
    }
    write(0x14, 0, 0x0b);
    for queue in 0..4 {
        for (offset, width, value) in [(0x16, 1, queue), (0x18, 1, 16), (0x1a, 1, queue)] {
            write(offset, width, value);
        }
        for (offset, area) in [(0x20, 0x1000), (0x28, 0x1400), (0x30, 0x1800)] {
            write(offset, 3, area + 0x1000 * queue);
        }
        write(0x1c, 1, 1);
    }
    // A vector's address, data and mask, then DRIVER_OK, a doorbell, a byte of the device's own configuration.
    for (offset, width, value) in [(0x4000, 3, 0xfee0_0000u64), (0x4008, 2, 0x40), (0x400c, 2, 0), (0x14, 0, 0x0f)] {
        write(offset, width, value);
    }
    write(0x3000, 2, 0);
    write(0x2000, 2, 7);
    // What of a console is its emergency write.
    write(0x2008, 2, u64::from(b'!'));
    // MSI-X on, the window into the BAR opened: configuration writes.
    for (offset, width, value) in [(4u8, 1, 6u64), (0x9a, 1, 0xc000), (0x8c, 2, 0x14), (0x90, 2, 1)] {
        steps.extend([1, offset, 0, width]);
        steps.extend(value.to_le_bytes());
    }
    steps.extend([0, 0x94, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
    (0..6u8).map(|function| [&[function], steps.as_slice()].concat()).collect()
}

/// A VM's configuration: with descriptors and every device, and with paths.
#[must_use]
pub fn config() -> Seeds {
    texts(&[
        r#"{"version":1,"name":"web","vcpus":2,"memory_mib":256,"cpus":[0,[1,2]],"hugepages":"none","prefault":true,"kernel":{"fd":6},
        "initrd":{"fd":7},"cmdline":"quiet","kvm":{"fd":5},"pci_ports":true,
        "disks":[{"id":"root","file":{"fd":8},"read_only":true,"format":"raw","lock":false,"limits":{"ops_per_second":5,"burst_ops":1}}],
        "nets":[{"mac":"02:00:00:00:00:01","tap":{"fds":[9,12]},"vhost":{"fds":[10,13]},"queue_pairs":2,"mtu":1500},
            {"mac":"02:00:00:00:00:02","link":{"unix":{"fd":14}},"limits":{"receive":{"bytes_per_second":9,"burst_bytes":2}}}],
        "rng":false,"console":{"output":{"fd":15},"input":{"fd":16},"size":{"columns":132,"rows":43},
            "ports":[{"name":"agent","output":{"fd":17},"input":{"fd":18}}]},
        "vsock":{"cid":3,"vhost":{"fd":19}},"balloon":{"free_page_reporting":true,"deflate_on_oom":false},
        "serial":{"output":{"fd":20}},"control":{"fd":11},"jail":{"uid":1000,"gid":1000,"pid_namespace":false},
        "trace":{"exits":true}}"#,
        r#"{"version":1,"name":"dev","vcpus":1,"memory_mib":32,"kernel":{"path":"/boot/vmlinux"},
        "disks":[{"id":"root","file":{"path":"/root.img"}}],
        "nets":[{"mac":"02:00:00:00:00:01","tap":{"name":"tap0"},"vhost":{"path":"/dev/vhost-net"}}],
        "console":{},"control":{"path":"/run/control"}}"#,
    ])
}

/// Requests to a VMM and what it answers.
#[must_use]
pub fn control() -> Seeds {
    use holdfast_model::contract::vm::{Reply, Request, RunState};
    let size = holdfast_model::contract::vm::WindowSize { columns: 132, rows: 43 };
    let requests = [
        Request::Ping,
        Request::Stop { deadline_ms: 1000 },
        Request::Balloon { target_mib: 64 },
        Request::VsockCid { cid: 4 },
        Request::Stats,
        Request::AttachConsole { console: Some("serial".into()), replay: false },
        Request::ResizeConsole { console: None, size },
    ];
    let replies = [
        Reply::Pong { version: "1.0".into(), state: RunState::Paused },
        Reply::Attached { console: "serial".into(), replayed: 9 },
        Reply::Refused { reason: "no".into() },
    ];
    let stats = r#"{"is":"stats","state":"running","uptime_ms":9,"setup_cpu_us":8,"vcpus":[{"pio_exits":1,"mmio_exits":2,"hottest":[]}],
        "devices":[["net0",{"out_bytes":1,"in_bytes":2,"out_ops":3,"in_ops":4,"errors":0}]],"consoles":[]}"#;
    let requests = requests.iter().filter_map(|r| serde_json::to_vec(r).ok());
    requests.chain(replies.iter().filter_map(|r| serde_json::to_vec(r).ok())).chain([stats.into()]).collect()
}

/// An ELF kernel with one segment and a PVH note.
#[must_use]
pub fn kernel() -> Seeds {
    let mut elf = vec![0u8; 64 + 2 * 56];
    elf[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(24, &0x0100_0000u64.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 2, 0]);
    let segment = |kind: u32, offset: u64, address: u64, size: u64| {
        let mut s = [kind.to_le_bytes(), 5u32.to_le_bytes()].concat();
        for number in [offset, address, address, size, size, 4] {
            s.extend(number.to_le_bytes());
        }
        s
    };
    put(64, &segment(1, 0, 0x0100_0000, 176));
    put(120, &segment(4, 176, 0x0100_0100, 20));
    // Xen note 18: the PVH entry point.
    elf.extend([4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    elf.extend(b"Xen\0");
    elf.extend(0x0100_0000u32.to_le_bytes());
    vec![elf]
}
