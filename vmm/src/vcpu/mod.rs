//! vCPU threads: run the guest, answer its exits, halt and stop on demand.
//!
//! [`exits`] counts what reaches this process, [`kernel_stats`] what KVM answers itself, [`affinity`] ties threads to host
//! CPUs.

pub mod affinity;
pub mod exits;
pub mod kernel_stats;

use std::cell::Cell;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::{Arc, Barrier, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_ioctls::{VcpuExit, VcpuFd};

use self::exits::ExitCounters;
use self::kernel_stats::KernelStats;
use crate::bus::Bus;
use crate::event_loop::EndSlot;
use crate::jail::seccomp;
use holdfast_model::contract::end::{End, ExitClass};
use holdfast_model::contract::vm::VcpuStats;
use holdfast_model::contract::vm::{Hot, Space};

/// KVM_SYSTEM_EVENT_SHUTDOWN, _RESET and _CRASH.
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
const SYSTEM_EVENT_RESET: u32 = 2;

/// What vCPU threads should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Run,
    Pause,
    Stop,
}

#[derive(Debug)]
struct GateState {
    order: Order,
    parked: usize,
    stopped: usize,
}

/// Where vCPU threads wait between guest entries.
#[derive(Debug)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

impl Gate {
    /// Returns `true` when the guest may be entered, `false` when the thread must end.
    fn pass(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.order == Order::Pause {
            state.parked += 1;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.parked -= 1;
        }
        state.order == Order::Run
    }

    fn set(&self, order: Order) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.order != Order::Stop {
            state.order = order;
        }
        self.changed.notify_all();
    }

    fn ended(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stopped += 1;
        self.changed.notify_all();
    }

    fn wait(&self, limit: Duration, done: impl Fn(&GateState) -> bool) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if done(&state) {
            return true;
        }
        let (state, _) = self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner);
        done(&state)
    }
}

/// Hottest addresses of each vCPU in [`VcpuStats`].
const HOTTEST: usize = 4;

/// One vCPU's counters: ours, and the kernel's where it has them.
#[derive(Debug)]
struct Counters {
    exits: ExitCounters,
    kernel: Option<KernelStats>,
}

impl Counters {
    fn stats(&self) -> VcpuStats {
        let (pio_exits, mmio_exits, other_exits) = self.exits.totals();
        let (all_exits, halt_exits) = self.kernel.as_ref().map_or((0, 0), KernelStats::totals);
        let hottest = self.exits.hottest(HOTTEST);
        VcpuStats { pio_exits, mmio_exits, other_exits, all_exits, halt_exits, hottest, ..VcpuStats::default() }
    }
}

/// The address spaces a vCPU's exits go to.
pub struct Buses {
    /// Port I/O.
    pub pio: Bus,
    /// Memory-mapped I/O.
    pub mmio: Bus,
}

impl Buses {
    /// What an exit was for.
    pub fn describe(&self, hot: &Hot) -> String {
        match hot.space {
            Space::Pio => self.pio.describe(hot.address),
            Space::Mmio => self.mmio.describe(hot.address),
        }
    }
}

/// All vCPU threads of a VM.
pub struct VcpuSet {
    gate: Arc<Gate>,
    threads: Vec<JoinHandle<()>>,
    counters: Vec<Arc<Counters>>,
    setup_cpu: Duration,
}

impl VcpuSet {
    /// Starts a thread for each vCPU, tied to its entry of `host_cpus` if there is one. They close their part of the jail
    /// when `jailed`, report at `ready` (which counts them and the caller), and enter the guest after
    /// [`VcpuSet::resume`].
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub fn start(
        vcpus: Vec<VcpuFd>,
        host_cpus: &[Vec<usize>],
        buses: &Arc<Buses>,
        end: &Arc<EndSlot>,
        ready: &Arc<Barrier>,
        jailed: bool,
    ) -> io::Result<Self> {
        install_kick_handler()?;
        let gate = Arc::new(Gate {
            state: Mutex::new(GateState { order: Order::Pause, parked: 0, stopped: 0 }),
            changed: Condvar::new(),
        });
        let mut set = Self { gate: gate.clone(), threads: Vec::new(), counters: Vec::new(), setup_cpu: Duration::ZERO };
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let counters = Arc::new(Counters { exits: ExitCounters::default(), kernel: KernelStats::of(&vcpu) });
            set.counters.push(counters.clone());
            let (gate, buses, end, ready) = (gate.clone(), buses.clone(), end.clone(), ready.clone());
            let host_cpus = host_cpus.get(index).cloned();
            let thread =
                std::thread::Builder::new().name(format!("vcpu{index}")).stack_size(256 * 1024).spawn(move || {
                    let prepared = prepare(index, host_cpus.as_deref(), jailed);
                    ready.wait();
                    let result = prepared.and_then(|()| run(index, vcpu, &buses, &gate, &counters.exits));
                    if let Err(reason) = result {
                        end.finish(reason);
                    }
                    gate.ended();
                })?;
            set.threads.push(thread);
        }
        Ok(set)
    }

    /// Lets the vCPUs enter the guest for the first time, after `setup_cpu` of CPU time.
    pub fn enter_guest(&mut self, setup_cpu: Duration) {
        self.setup_cpu = setup_cpu;
        self.resume();
    }

    /// CPU time that this process spent before the first guest instruction.
    pub fn setup_cpu(&self) -> Duration {
        self.setup_cpu
    }

    /// Lets the vCPUs enter the guest again.
    pub fn resume(&self) {
        self.gate.set(Order::Run);
    }

    /// Calls all vCPUs out of the guest; wait with [`VcpuSet::all_parked`].
    pub fn pause(&self) {
        self.gate.set(Order::Pause);
        self.kick();
    }

    /// Ends all vCPU threads; wait with [`VcpuSet::all_stopped`].
    pub fn stop(&self) {
        self.gate.set(Order::Stop);
        self.kick();
    }

    /// Whether all live vCPUs are out of the guest, waiting up to `limit` for it.
    pub fn all_parked(&self, limit: Duration) -> bool {
        self.gate.wait(limit, |state| state.parked + state.stopped == self.threads.len())
    }

    /// Whether all vCPU threads have ended, waiting up to `limit` for it.
    pub fn all_stopped(&self, limit: Duration) -> bool {
        self.gate.wait(limit, |state| state.stopped == self.threads.len())
    }

    /// Counters of each vCPU.
    pub fn stats(&self) -> Vec<VcpuStats> {
        let each = self.counters.iter().zip(&self.threads);
        each.map(|(counters, thread)| VcpuStats { cpu_ns: cpu_ns(thread), ..counters.stats() }).collect()
    }

    /// Every address that is still followed, over all vCPUs, hottest first.
    pub fn hottest(&self) -> Vec<Hot> {
        exits::merge(self.counters.iter().map(|counters| counters.exits.hottest(usize::MAX)))
    }

    fn kick(&self) {
        for thread in &self.threads {
            if !thread.is_finished() {
                // SAFETY: the handle is not joined, so the thread id is valid; the handler only sets a byte.
                unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
            }
        }
    }
}

/// Processor time of a thread, nanoseconds; 0 once it has ended.
fn cpu_ns(thread: &JoinHandle<()>) -> u64 {
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the handle is not joined, so the thread id is valid; both calls write one value each.
    let known = unsafe {
        libc::pthread_getcpuclockid(thread.as_pthread_t(), &mut clock) == 0
            && libc::clock_gettime(clock, &mut time) == 0
    };
    if known { time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs() } else { 0 }
}

thread_local! {
    /// This thread's `kvm_run.immediate_exit`, for the signal handler.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn on_kick(_: libc::c_int) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: set by `run` to a byte of this thread's own mapping of `kvm_run`, cleared before that goes away.
        unsafe { flag.write_volatile(1) };
    }
}

fn install_kick_handler() -> io::Result<()> {
    // SAFETY: all zeros is a valid `sigaction`: no flags, so KVM_RUN is interrupted rather than restarted.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_kick as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler is async-signal-safe: it reads a thread-local constant-initialised cell and writes a byte.
    if unsafe { libc::sigaction(kick_signal(), &action, std::ptr::null_mut()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What a vCPU thread does to itself before the guest runs: the filter comes last, since it forbids all of this.
fn prepare(index: usize, host_cpus: Option<&[usize]>, jailed: bool) -> Result<(), End> {
    if let Some(cpus) = host_cpus {
        affinity::pin(cpus).map_err(|e| {
            let text = format!("vCPU {index}: cannot be tied to host CPUs {}: {e}", affinity::ranges(cpus));
            End::new(ExitClass::Config, text)
        })?;
    }
    if jailed {
        let closed = seccomp::close(seccomp::ThreadKind::Vcpu);
        closed.map_err(|e| End::new(ExitClass::Jail, format!("vCPU {index}: {e}")))?;
    }
    Ok(())
}

fn run(index: usize, mut vcpu: VcpuFd, buses: &Buses, gate: &Gate, counters: &ExitCounters) -> Result<(), End> {
    let immediate_exit = &raw mut vcpu.get_kvm_run().immediate_exit;
    IMMEDIATE_EXIT.set(immediate_exit);
    let result = enter(index, &mut vcpu, buses, gate, counters);
    IMMEDIATE_EXIT.set(std::ptr::null_mut());
    result
}

fn enter(index: usize, vcpu: &mut VcpuFd, buses: &Buses, gate: &Gate, counters: &ExitCounters) -> Result<(), End> {
    let mut look = true;
    loop {
        if look {
            // Cleared before the gate is looked at: a kick after this line makes the next KVM_RUN return at once.
            vcpu.set_kvm_immediate_exit(0);
            if !gate.pass() {
                return Ok(());
            }
            look = false;
        }
        match vcpu.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                counters.access(Space::Pio, port.into());
                buses.pio.read(port.into(), data)?;
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                counters.access(Space::Pio, port.into());
                buses.pio.write(port.into(), data)?;
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                counters.access(Space::Mmio, address);
                buses.mmio.read(address, data)?;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                counters.access(Space::Mmio, address);
                buses.mmio.write(address, data)?;
            }
            Ok(VcpuExit::Intr) => {
                counters.other();
                look = true;
            }
            Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => {
                counters.other();
                look = true;
            }
            Ok(VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => counters.other(),
            Ok(VcpuExit::Shutdown) => {
                return Err(End::guest_fault(format!("vCPU {index}: triple fault{}", registers(vcpu))));
            }
            Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_RESET, _)) => {
                return Err(End::new(ExitClass::GuestReset, "guest reset"));
            }
            Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_SHUTDOWN, _)) => {
                return Err(End::new(ExitClass::PowerOff, "guest powered off"));
            }
            Ok(VcpuExit::FailEntry(reason, _)) => {
                return Err(End::guest_fault(format!(
                    "vCPU {index}: the CPU refused to enter the guest ({reason:#x})"
                )));
            }
            Ok(VcpuExit::InternalError) => {
                return Err(End::guest_fault(format!(
                    "vCPU {index}: KVM cannot emulate an instruction (suberror {}){}",
                    suberror(vcpu),
                    registers(vcpu)
                )));
            }
            Ok(other) => {
                return Err(End::guest_fault(format!("vCPU {index}: unexpected exit {other:?}")));
            }
            Err(e) => return Err(End::host_fault(format!("vCPU {index}: KVM_RUN: {e}"))),
        }
    }
}

fn registers(vcpu: &VcpuFd) -> String {
    match (vcpu.get_regs(), vcpu.get_sregs()) {
        (Ok(regs), Ok(sregs)) => {
            format!(
                " at rip {:#x}, rsp {:#x}, cr0 {:#x}, cr2 {:#x}, cr3 {:#x}, cr4 {:#x}",
                regs.rip, regs.rsp, sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4
            )
        }
        _ => String::new(),
    }
}

fn suberror(vcpu: &mut VcpuFd) -> u32 {
    // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, so this member of the union is set.
    unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror }
}
