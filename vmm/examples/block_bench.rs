//! What the block device costs beside the host's own io_uring: random reads of 4 KiB of one file, requests for each second of
//! processor time, with and without the device between. No VM: the driver's side of the ring is played here, in the same
//! process, and its time is not counted, since a guest does that work on its own account.
//!
//! ```text
//! block_bench [FILE] [--direct] [--depth=32] [--seconds=1] [--rounds=5]
//! ```
//!
//! Without FILE it makes one of 256 MiB. Both sides take turns, `rounds` times for `seconds` each; the medians are printed, one
//! line for each figure: name, tab, value, tab, unit. Without `--direct` the file is in the page cache, where a request costs the
//! least and so the device shows most.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::{Duration, Instant};

use holdfast_vmm::memory::{self, GuestAddress, GuestRam, host_slice};
use holdfast_vmm::virtio::block::{Block, BlockOptions};
use holdfast_vmm::virtio::interrupt::Interrupts;
use holdfast_vmm::virtio::queue::VirtQueue;
use holdfast_vmm::virtio::{Activation, ActiveDevice, Device, Progress};
use io_uring::{IoUring, opcode, types};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

const BLOCK: usize = 4096;
const MADE_BYTES: u64 = 256 << 20;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

struct Options {
    file: PathBuf,
    direct: bool,
    depth: u16,
    time: Duration,
    rounds: usize,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("block_bench: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut made = None;
    let options = options(&mut made)?;
    let measured = measure(&options);
    if let Some(path) = made {
        let _ = std::fs::remove_file(path);
    }
    let (mut host, mut vmm) = measured?;
    let kind = if options.direct { "direct" } else { "cached" };
    let (host, vmm) = (median(&mut host), median(&mut vmm));
    println!("block-randread-4k-{kind}-host\t{host:.0}\tIOPS/CPU-s");
    println!("block-randread-4k-{kind}-vmm\t{vmm:.0}\tIOPS/CPU-s");
    println!("block-randread-4k-{kind}-ratio\t{:.3}\tvmm/host", vmm / host);
    Ok(())
}

fn options(made: &mut Option<PathBuf>) -> Result<Options> {
    let mut options =
        Options { file: PathBuf::new(), direct: false, depth: 32, time: Duration::from_secs(1), rounds: 5 };
    for argument in std::env::args().skip(1) {
        let number = |text: &str| text.parse::<f64>().map_err(|e| format!("{argument}: {e}"));
        match argument.split_once('=') {
            Some(("--depth", text)) => options.depth = (number(text)? as u16).clamp(1, 64),
            Some(("--seconds", text)) => options.time = Duration::from_secs_f64(number(text)?.clamp(0.01, 60.0)),
            Some(("--rounds", text)) => options.rounds = (number(text)? as usize).max(1),
            _ if argument == "--direct" => options.direct = true,
            _ if argument.starts_with("--") => return Err(format!("{argument} is not understood").into()),
            _ => options.file = argument.into(),
        }
    }
    if options.file.as_os_str().is_empty() {
        let path = std::env::temp_dir().join(format!("block_bench-{}", std::process::id()));
        let mut file = File::create(&path)?;
        *made = Some(path.clone());
        for n in 0..MADE_BYTES >> 20 {
            file.write_all(&vec![n as u8; 1 << 20])?;
        }
        file.sync_all()?;
        options.file = path;
    }
    Ok(options)
}

/// Requests for each second of processor time, of the host's own and of the device, one for each round.
fn measure(options: &Options) -> Result<(Vec<f64>, Vec<f64>)> {
    let open = || -> io::Result<File> {
        let flags = if options.direct { libc::O_DIRECT } else { 0 };
        OpenOptions::new().read(true).custom_flags(flags).open(&options.file)
    };
    let blocks = std::fs::metadata(&options.file)?.len() / BLOCK as u64;
    if blocks == 0 {
        return Err(format!("{}: not even one block", options.file.display()).into());
    }
    if !options.direct {
        // Into the page cache.
        io::copy(&mut open()?, &mut io::sink())?;
    }
    let mut host = Host::new(open()?, options.depth)?;
    let mut vmm = Vmm::new(open()?, options.depth)?;
    let (mut of_host, mut of_vmm) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        of_host.push(host.run(options.time, blocks)?);
        of_vmm.push(vmm.run(options.time, blocks)?);
    }
    Ok((of_host, of_vmm))
}

/// The host's own way: a ring with the file in its table and completions found when we look, as the device's; a buffer for
/// each request.
struct Host {
    ring: IoUring,
    buffers: Buffers,
    free: Vec<u16>,
    random: Random,
}

impl Host {
    fn new(file: File, depth: u16) -> Result<Self> {
        let ring: IoUring = IoUring::builder().setup_coop_taskrun().build(u32::from(depth).next_power_of_two())?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let buffers = Buffers::new(usize::from(depth) * BLOCK)?;
        Ok(Self { ring, buffers, free: (0..depth).collect(), random: Random(1) })
    }

    fn run(&mut self, time: Duration, blocks: u64) -> Result<f64> {
        let (started, cpu, mut count) = (Instant::now(), process_cpu()?, 0u64);
        let all = self.free.len();
        let mut stopping = false;
        loop {
            while !stopping && let Some(id) = self.free.pop() {
                let entry = opcode::Read::new(
                    types::Fixed(0),
                    self.buffers.0.wrapping_byte_add(usize::from(id) * BLOCK).cast(),
                    BLOCK as u32,
                )
                .offset(self.random.below(blocks) * BLOCK as u64)
                .build()
                .user_data(id.into());
                // SAFETY: each request has its own part of the buffers, which live as long as the ring.
                unsafe { self.ring.submission().push(&entry)? };
            }
            self.ring.submit_and_wait(1)?;
            for entry in self.ring.completion() {
                if entry.result() != BLOCK as i32 {
                    return Err(format!("a read returned {}", entry.result()).into());
                }
                self.free.push(entry.user_data() as u16);
                count += 1;
            }
            stopping = started.elapsed() >= time;
            if stopping && self.free.len() == all {
                return Ok(count as f64 / (process_cpu()? - cpu).as_secs_f64());
            }
        }
    }
}

/// The device, and the driver's side of its ring.
struct Vmm {
    active: Box<dyn ActiveDevice>,
    epoll: Epoll,
    driver: Driver,
}

impl Vmm {
    fn new(file: File, depth: u16) -> Result<Self> {
        let ram = memory::allocate(32, holdfast_model::contract::vm::PageSize::Transparent, false)?;
        let block = Block::new(BlockOptions { id: "bench".into(), read_only: true, ..BlockOptions::default() }, file)?;
        let vector = Arc::new(EventFd::new(libc::EFD_NONBLOCK)?);
        let interrupts = Arc::new(Interrupts::new(vec![vector.clone()], 1, None));
        interrupts.set_msix_enabled(true);
        interrupts.set_queue_vector(0, 0);
        let kick = Arc::new(EventFd::new(libc::EFD_NONBLOCK)?);
        let mut queue = Queue::new(SIZE)?;
        queue.set_desc_table_address(Some(TABLE as u32), Some(0));
        queue.set_avail_ring_address(Some(AVAIL as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_event_idx(true);
        queue.set_ready(true);
        let features = block.features();
        let queues = vec![VirtQueue::new(0, queue, ram.clone(), kick.clone(), interrupts.clone())?];
        let active = Box::new(block).activate(Activation { ram: ram.clone(), features, queues, interrupts })?;
        let epoll = Epoll::new()?;
        for source in active.sources() {
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, source.token.into());
            epoll.ctl(ControlOperation::Add, source.fd, event)?;
        }
        Ok(Self { active, epoll, driver: Driver::new(ram, kick, vector, depth)? })
    }

    fn run(&mut self, time: Duration, blocks: u64) -> Result<f64> {
        let clock = clock_cost()?;
        let (started, cpu) = (Instant::now(), process_cpu()?);
        let (mut count, mut of_driver) = (0u64, Duration::ZERO);
        let mut events = [EpollEvent::default(); 4];
        let mut stopping = false;
        loop {
            let since = thread_cpu()?;
            count += self.driver.collect()?;
            stopping = stopping || started.elapsed() >= time;
            if !stopping {
                self.driver.offer(blocks)?;
            }
            // Of the two looks at the clock one falls into the difference; the other is not the device's either.
            of_driver += thread_cpu()? - since + clock;
            if stopping && self.driver.is_idle() {
                return Ok(count as f64 / (process_cpu()? - cpu - of_driver).as_secs_f64());
            }
            let ready = match self.epoll.wait(-1, &mut events) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
                other => other?,
            };
            for event in &events[..ready] {
                while self.active.ready(event.data() as u8)? == Progress::Again {}
            }
        }
    }
}

const SIZE: u16 = 256;
// Where the driver puts things in guest memory.
const TABLE: usize = 0x1000;
const AVAIL: usize = 0x2000;
const USED: usize = 0x3000;
const HEADERS: usize = 0x1_0000;
const STATUS: usize = 0x2_0000;
const DATA: usize = 0x10_0000;

/// A driver as Linux's: descriptors made once, both event indices.
struct Driver {
    base: *mut u8,
    _ram: Arc<GuestRam>,
    kick: Arc<EventFd>,
    vector: Arc<EventFd>,
    depth: usize,
    free: Vec<u16>,
    avail: u16,
    used: u16,
    random: Random,
}

impl Driver {
    fn new(ram: Arc<GuestRam>, kick: Arc<EventFd>, vector: Arc<EventFd>, depth: u16) -> Result<Self> {
        let all = DATA + usize::from(depth) * BLOCK;
        let base = host_slice(&ram, GuestAddress(0), all).ok_or("guest memory is too small")?.ptr_guard_mut().as_ptr();
        let free: Vec<u16> = (0..depth).collect();
        let driver =
            Self { base, _ram: ram, kick, vector, depth: free.len(), free, avail: 0, used: 0, random: Random(1) };
        for id in 0..usize::from(depth) {
            // Header (read), data (write), status (write): flags NEXT 1, WRITE 2.
            let parts = [(HEADERS + id * 16, 16, 1), (DATA + id * BLOCK, BLOCK, 3), (STATUS + id, 1, 2u16)];
            for (n, (addr, len, flags)) in parts.into_iter().enumerate() {
                let (at, next) = (TABLE + (id * 3 + n) * 16, (id * 3 + n + 1) as u16);
                driver.put(at, addr as u64);
                driver.put(at + 8, len as u32);
                driver.put(at + 12, flags);
                driver.put(at + 14, next);
            }
        }
        Ok(driver)
    }

    fn put<T>(&self, at: usize, value: T) {
        // SAFETY: inside the memory that `new` looked up, and aligned: all offsets above are multiples of the size.
        unsafe { self.base.add(at).cast::<T>().write_volatile(value) }
    }

    fn get<T: Copy>(&self, at: usize) -> T {
        // SAFETY: as in `put`.
        unsafe { self.base.add(at).cast::<T>().read_volatile() }
    }

    fn index(&self, at: usize) -> &AtomicU16 {
        // SAFETY: as in `put`; every access to an index is atomic.
        unsafe { &*self.base.add(at).cast::<AtomicU16>() }
    }

    fn is_idle(&self) -> bool {
        self.free.len() == self.depth
    }

    /// Offers as many reads as there is room for, and rings when the device wants to be told.
    fn offer(&mut self, blocks: u64) -> Result<()> {
        let before = self.avail;
        while let Some(id) = self.free.pop() {
            let sector = self.random.below(blocks) * (BLOCK / 512) as u64;
            self.put(HEADERS + usize::from(id) * 16 + 8, sector);
            self.put(STATUS + usize::from(id), 0xffu8);
            self.put(AVAIL + 4 + 2 * usize::from(self.avail % SIZE), id * 3);
            self.avail = self.avail.wrapping_add(1);
        }
        self.index(AVAIL + 2).store(self.avail, Ordering::Release);
        fence(Ordering::SeqCst);
        let event = self.index(USED + 4 + 8 * usize::from(SIZE)).load(Ordering::Acquire);
        // vring_need_event (virtio 1.3 §2.7.10).
        if self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(before) {
            self.kick.write(1)?;
        }
        Ok(())
    }

    /// Takes back what the device has served.
    fn collect(&mut self) -> Result<u64> {
        let mut count = 0;
        let until = self.index(USED + 2).load(Ordering::Acquire);
        while self.used != until {
            let at = USED + 4 + 8 * usize::from(self.used % SIZE);
            let id = self.get::<u32>(at) as u16 / 3;
            let (status, written) = (self.get::<u8>(STATUS + usize::from(id)), self.get::<u32>(at + 4));
            if status != 0 || written as usize != BLOCK + 1 {
                return Err(format!("a read ended with status {status} and {written} bytes").into());
            }
            self.free.push(id);
            self.used = self.used.wrapping_add(1);
            count += 1;
        }
        if count > 0 {
            // Interrupt at the next one.
            self.index(AVAIL + 4 + 2 * usize::from(SIZE)).store(self.used, Ordering::Release);
            // Not there when the device saw no need.
            let _ = self.vector.read();
        }
        Ok(count)
    }
}

/// Page-aligned memory.
struct Buffers(*mut libc::c_void, usize);

impl Buffers {
    fn new(bytes: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: a new mapping.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(memory, bytes)) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: our own mapping; the ring that used it has nothing in flight.
        unsafe { libc::munmap(self.0, self.1) };
    }
}

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Processor time of all threads, those included that the kernel runs for io_uring.
fn process_cpu() -> io::Result<Duration> {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn thread_cpu() -> io::Result<Duration> {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// What one look at the thread's clock costs: a system call.
fn clock_cost() -> io::Result<Duration> {
    const LOOKS: u32 = 10_000;
    let since = thread_cpu()?;
    for _ in 1..LOOKS {
        thread_cpu()?;
    }
    Ok((thread_cpu()? - since) / LOOKS)
}

fn clock(which: libc::clockid_t) -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills one structure.
    if unsafe { libc::clock_gettime(which, &mut time) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
