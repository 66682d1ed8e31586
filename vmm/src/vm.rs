//! Builds a VM out of its configuration and runs it to its end.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, RawFd};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use holdfast_links::Tap;
use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::boot::kernel::Entry;
use crate::boot::{self, acpi, cpu};
use crate::bus::Bus;
use crate::config::{MAX_DEVICES, check_host_cpus};
use crate::control::ControlServer;
use crate::event_loop::{EndSlot, EventLoop, LoopHandle};
use crate::guest_end;
use crate::irq::{IrqError, KvmRouter, Pin};
use crate::jail::{self, seccomp};
use crate::memory::Address;
use crate::memory::{self, ECAM, GuestMemoryBackend, GuestMemoryRegion, GuestRam, PCI_WINDOW};
use crate::pci::bus::{ConfigPorts, Ecam, PciBus, SLOTS, Unmap, Window};
use crate::pci::pages::ConfigPages;
use crate::pci::virtio::{BAR_SIZE, Doorbells, Machine, VirtioFunction};
use crate::platform::power;
use crate::platform::serial::{self, SerialPort};
use crate::resources::{self, Cable, ConsoleFiles, Resources};
use crate::signal;
use crate::terminal::Terminal;
use crate::vcpu::{Buses, VcpuSet, affinity, exits};
use crate::virtio::balloon::Balloon;
use crate::virtio::block::{Block, BlockOptions};
use crate::virtio::console::{Console, Port};
use crate::virtio::net::{Lane, Net, NetOptions, vhost::VhostNet};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{Vsock, vhost::VhostVsock};
use crate::virtio::{self, Device};
use holdfast_model::contract::end::{End, ExitClass};
use holdfast_model::contract::vm::{GUEST_END_PORT, NetConfig, Timer, VmConfig};

const _: () = assert!(MAX_DEVICES + 5 <= SLOTS, "host bridge, console, rng, vsock and balloon need slots too");

/// Runs the VM of `config` until it ends. Of descriptors that `config` does not name, a jail leaves `last_words` open. In a jail with its own pid namespace, the calling process only waits and ends
/// with the VM's exit code; the VM runs in a child.
pub fn run(config: &VmConfig, last_words: Option<RawFd>) -> End {
    match build_and_run(config, last_words) {
        Ok(end) | Err(end) => end,
    }
}

fn build_and_run(config: &VmConfig, last_words: Option<RawFd>) -> Result<End, End> {
    let kvm_end = |e: &dyn std::fmt::Display| End::new(ExitClass::Kvm, e.to_string());
    if config.jail.is_some() {
        resources::close_others(config, last_words)
            .map_err(|e| End::new(ExitClass::Jail, format!("jail: close descriptors: {e}")))?;
    }
    if !config.cpus.is_empty() {
        let allowed = affinity::allowed().map_err(|e| End::host_fault(format!("host CPUs: {e}")))?;
        check_host_cpus(config, &allowed).map_err(|e| End::new(ExitClass::Config, e.to_string()))?;
    }
    let resources = Resources::open(config).map_err(|e| End::new(e.class(), e.to_string()))?;
    let mut setup = SetupClock::start();
    if let Some(jail) = &config.jail {
        seccomp::report_to(last_words);
        jail::close(jail).map_err(|e| End::new(ExitClass::Jail, e.to_string()))?;
        setup.after_fork();
    }
    quiet_allocator();

    let ram = memory::allocate(config.memory_mib, config.hugepages, config.prefault)
        .map_err(|e| End::new(ExitClass::Resource, e.to_string()))?;
    // Before KVM is asked for anything: an image that cannot boot is found on every machine.
    let entry = load_images(config, &ram, resources.kernel, resources.initrd)?;

    // SAFETY: the descriptor is owned and given away here.
    let kvm = unsafe { Kvm::from_raw_fd(resources.kvm.into_raw_fd()) };
    let vm = Arc::new(create_vm(&kvm, config)?);
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(|e| kvm_end(&format!("kvm: cannot ask for CPUID: {e}")))?;
    let tsc_deadline = has_deadlines(config.timer, &kvm, &cpuid)?;
    // A kernel whose timer needs no calibration never uses a PIT.
    let pit = !tsc_deadline;
    if pit {
        make_pit(&vm).map_err(|e| kvm_end(&format!("kvm: cannot make the timer: {e}")))?;
    }
    let platform = acpi::Platform {
        vcpus: config.vcpus,
        serial_port: config.serial.is_some(),
        pci_ports: config.pci_ports,
        calibrates: pit,
    };
    boot::describe(&ram, platform).map_err(|e| End::new(ExitClass::Image, e.to_string()))?;
    map_memory(&vm, &ram).map_err(|e| kvm_end(&e))?;

    let sci = Pin::new(vm.clone(), power::SCI.into());
    let power = power::Power::new(sci.share(0));
    let end = EndSlot::new().map_err(|e| End::host_fault(format!("eventfd: {e}")))?;
    let handle = LoopHandle::new().map_err(|e| End::host_fault(format!("eventfd: {e}")))?;
    let control = resources
        .control
        .map(ControlServer::new)
        .transpose()
        .map_err(|e| End::new(ExitClass::Resource, format!("control: {e}")))?;
    let terminate = signal::terminate_to_eventfd().map_err(|e| End::host_fault(format!("SIGTERM: {e}")))?;
    let mut event_loop = EventLoop::new(handle.clone(), end.clone(), power.clone(), terminate, control)
        .map_err(|e| End::host_fault(format!("epoll: {e}")))?;

    let machine = Machine {
        ram: ram.clone(),
        router: Arc::new(KvmRouter::new(vm.clone())),
        doorbells: Arc::new(KvmDoorbells(vm.clone())),
        devices: handle,
    };
    let ports = make_ports(config, resources.console, resources.ports, &mut event_loop)
        .map_err(|e| End::host_fault(format!("console: {e}")))?;
    let guest_end = ports.iter().map(|port| port.ends().0).find(|terminal| terminal.name() == GUEST_END_PORT);
    let mut devices = make_devices(config, resources.disks, resources.nets, ports)?;
    devices.extend(make_vsock(config, resources.vsock)?);
    devices.extend(make_balloon(config));
    let mut pci = plug(devices, &mut event_loop, &vm, &machine).map_err(|e| kvm_end(&e))?;
    show_config_space(&mut pci, &vm).map_err(|e| kvm_end(&e))?;
    let serial = resources
        .serial
        .map(|files| make_serial(files, &vm, &mut event_loop))
        .transpose()
        .map_err(|e| End::host_fault(format!("serial: {e}")))?;
    let buses = Arc::new(wire(pci, config.pci_ports, pit, power, serial));

    let mut vcpus = Vec::new();
    for index in 0..config.vcpus {
        let vcpu = vm.create_vcpu(index.into()).map_err(|e| kvm_end(&format!("kvm: cannot make vCPU {index}: {e}")))?;
        let entry = (index == 0).then_some(entry);
        cpu::set_up(&vcpu, index, config.vcpus, &cpuid, tsc_deadline, entry, &ram).map_err(|e| kvm_end(&e))?;
        vcpus.push(vcpu);
    }
    drop(kvm);

    let jailed = config.jail.is_some();
    let ready = Arc::new(Barrier::new(usize::from(config.vcpus) + 1));
    let host_cpus: Vec<Vec<usize>> = config.cpus.iter().map(|cpus| cpus.numbers().to_vec()).collect();
    let mut vcpus = VcpuSet::start(vcpus, &host_cpus, &buses, &end, &ready, jailed)
        .map_err(|e| End::host_fault(format!("cannot start vCPU threads: {e}")))?;
    ready.wait();
    if jailed {
        seccomp::close(seccomp::ThreadKind::Device).map_err(|e| End::new(ExitClass::Jail, e.to_string()))?;
    }
    vcpus.enter_guest(setup.elapsed());
    let mut end = event_loop.run(&vcpus);
    if let Some(terminal) = guest_end {
        end = guest_end::refine(end, &terminal.kept());
    }
    if config.trace.exits {
        let table = exits::table(&vcpus.stats(), &vcpus.hottest(), |hot| buses.describe(hot));
        let setup = vcpus.setup_cpu().as_micros();
        eprint!("vmm {}: {setup} us CPU before the first guest instruction; exits since:\n{table}", config.name);
    }
    Ok(end)
}

/// Loads kernel, initrd and command line; how to enter the guest.
fn load_images(config: &VmConfig, ram: &GuestRam, mut kernel: File, mut initrd: Option<File>) -> Result<Entry, End> {
    let kernel_name = config.kernel.to_string();
    let initrd_name = config.initrd.as_ref().map(ToString::to_string).unwrap_or_default();
    boot::load(
        ram,
        config.memory_mib,
        (&kernel_name, &mut kernel),
        initrd.as_mut().map(|file| (initrd_name.as_str(), file)),
        &config.cmdline,
    )
    .map_err(|e| End::new(ExitClass::Image, e.to_string()))
}

/// CPU time that this process, and its parent before a pid namespace, spent on the VM so far.
struct SetupClock {
    pid: u32,
    before: Duration,
    carried: Duration,
}

impl SetupClock {
    fn start() -> Self {
        Self { pid: std::process::id(), before: cpu_time(), carried: Duration::ZERO }
    }

    /// A child's clock starts at zero: what was spent before the jail closed is carried over.
    fn after_fork(&mut self) {
        // In its own pid namespace the VM's process is number 1.
        if std::process::id() != self.pid {
            self.carried = self.before;
        }
    }

    fn elapsed(&self) -> Duration {
        self.carried + cpu_time()
    }
}

/// `CLOCK_PROCESS_CPUTIME_ID`.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one `timespec`.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// A VM with interrupt controllers.
fn create_vm(kvm: &Kvm, config: &VmConfig) -> Result<VmFd, End> {
    let fail = |what: &str| {
        let what = what.to_string();
        move |e: kvm_ioctls::Error| End::new(ExitClass::Kvm, format!("kvm: cannot {what}: {e}"))
    };
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION as i32 {
        let text = format!("kvm: {} is not KVM (API version {version}, expected {KVM_API_VERSION})", config.kvm);
        return Err(End::new(ExitClass::Kvm, text));
    }
    let (host, most) = (kvm.get_nr_vcpus(), kvm.get_max_vcpus());
    if usize::from(config.vcpus) > most {
        let text =
            format!("config: vcpus is {}, expected at most the {most} that this host's KVM allows", config.vcpus);
        return Err(End::new(ExitClass::Config, text));
    }
    if usize::from(config.vcpus) > host {
        eprintln!("vmm: {} vCPUs on a host of {host} CPUs: expect them to wait for each other", config.vcpus);
    }
    let vm = kvm.create_vm().map_err(fail("make a VM"))?;
    // Intel only; elsewhere KVM ignores or refuses them, and needs neither.
    let _ = vm.set_identity_map_address(memory::IDENTITY_MAP);
    let _ = vm.set_tss_address(memory::KVM_TSS as usize);
    vm.create_irq_chip().map_err(fail("make interrupt controllers"))?;
    Ok(vm)
}

/// Whether the guest gets the TSC-deadline timer.
fn has_deadlines(timer: Timer, kvm: &Kvm, cpuid: &CpuId) -> Result<bool, End> {
    let possible = kvm.check_extension(Cap::TscDeadlineTimer);
    match timer {
        Timer::Auto => Ok(possible && cpu::has_invariant_tsc(cpuid)),
        Timer::Pit => Ok(false),
        Timer::TscDeadline if possible => Ok(true),
        Timer::TscDeadline => {
            let what = "kvm: has no TSC-deadline timer; leave \"timer\" out, or set it to \"pit\"";
            Err(End::new(ExitClass::Kvm, what))
        }
    }
}

/// The timer of a PC, in the kernel.
fn make_pit(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    // Without the dummy speaker port a kernel that calibrates against the PIT spins for ever.
    vm.create_pit2(kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() })
}

fn map_memory(vm: &VmFd, ram: &GuestRam) -> Result<(), String> {
    for (slot, region) in (0u32..).zip(ram.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is ours, unshared with other slots, and lives as long as the VM: every device holds the RAM.
        unsafe { vm.set_user_memory_region(region) }.map_err(|e| format!("kvm: cannot map guest memory: {e}"))?;
    }
    Ok(())
}

/// Devices in PCI order: disks, network cards, console, entropy.
fn make_devices(
    config: &VmConfig,
    disks: Vec<File>,
    nets: Vec<Cable>,
    ports: Vec<Port>,
) -> Result<Vec<Box<dyn Device>>, End> {
    let mut devices: Vec<Box<dyn Device>> = Vec::new();
    for (disk, file) in config.disks.iter().zip(disks) {
        let options = BlockOptions {
            id: disk.id.clone(),
            image: disk.format,
            read_only: disk.read_only,
            limits: disk.limits.unwrap_or_default(),
        };
        let block = Block::new(options, file)
            .map_err(|e| End::new(ExitClass::Resource, format!("disk {}: {}: {e}", disk.id, disk.file)))?;
        devices.push(Box::new(block));
    }
    for (n, (net, cable)) in config.nets.iter().zip(nets).enumerate() {
        devices.push(Box::new(make_net(&format!("net{n}"), net, cable)?));
    }
    if !ports.is_empty() {
        devices.push(Box::new(Console::new("console".into(), ports)));
    }
    if config.rng {
        devices.push(Box::new(Rng::new("rng".into())));
    }
    Ok(devices)
}

/// The socket device, behind the devices that have always been there.
fn make_vsock(config: &VmConfig, file: Option<File>) -> Result<Option<Box<dyn Device>>, End> {
    let (Some(vsock), Some(file)) = (&config.vsock, file) else {
        return Ok(None);
    };
    let fail = |reason: String| End::new(ExitClass::Resource, format!("vsock: {reason}"));
    let kernel = VhostVsock::new(file).map_err(|e| match e.raw_os_error() {
        // It still belongs to the memory, and the guest, of the VM that it served first.
        Some(libc::EBUSY) => fail(format!("{} was used by an earlier VM; pass a fresh one", vsock.vhost)),
        _ => fail(format!("{} cannot be used as vhost-vsock: {e}", vsock.vhost)),
    })?;
    let device =
        Vsock::new("vsock".into(), kernel, vsock.cid).map_err(|e| fail(virtio::vsock::cid_refusal(vsock.cid, &e)))?;
    Ok(Some(Box::new(device)))
}

/// The memory balloon, last.
fn make_balloon(config: &VmConfig) -> Option<Box<dyn Device>> {
    let balloon = config.balloon.as_ref()?;
    Some(Box::new(Balloon::new("balloon".into(), balloon, config.memory_mib)))
}

/// One network card.
fn make_net(name: &str, net: &NetConfig, cable: Cable) -> Result<Net, End> {
    let limits = net.limits.unwrap_or_default();
    let options = NetOptions {
        mtu: net.mtu,
        receive: limits.receive,
        transmit: limits.transmit,
        ..NetOptions::new(name, net.mac)
    };
    let (taps, vhosts) = match cable {
        Cable::Other(link) => return Ok(Net::new(vec![Lane::User(link)], options)),
        Cable::Tap(taps, vhosts) => (taps, vhosts),
    };
    let through_us = |taps: Vec<Tap>| taps.into_iter().map(|tap| Lane::User(Box::new(tap))).collect();
    let lanes: Vec<Lane> = match vhosts.into_iter().map(VhostNet::new).collect::<io::Result<Vec<_>>>() {
        Ok(vhosts) if vhosts.is_empty() => through_us(taps),
        Ok(vhosts) => taps.into_iter().zip(vhosts).map(|(tap, vhost)| Lane::Vhost(tap, vhost)).collect(),
        // A descriptor served an earlier VM, whose memory it still belongs to. A fresh one is the cure; until then
        // frames pass through this process, slower and still right.
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
            eprintln!("vmm: {name}: vhost-net descriptor was used before; frames pass through the VMM");
            through_us(taps)
        }
        Err(e) => {
            let text = format!("{name}: cannot set up vhost-net: {e}; leave out \"vhost\" to do without");
            return Err(End::new(ExitClass::Resource, text));
        }
    };
    Ok(Net::new(lanes, options))
}

/// The ports of the virtio console, `hvc0` first, their host's sides served by the event loop; none without a console.
fn make_ports(
    config: &VmConfig,
    console: Option<ConsoleFiles>,
    ports: Vec<ConsoleFiles>,
    event_loop: &mut EventLoop,
) -> io::Result<Vec<Port>> {
    let (Some(config), Some(files)) = (&config.console, console) else {
        return Ok(Vec::new());
    };
    let mut made = vec![Port::new(None, Terminal::with_size("console", files.output, files.input, config.size))?];
    for (config, files) in config.ports.iter().zip(ports) {
        let terminal = Terminal::new(&config.name, files.output, files.input);
        made.push(Port::new(Some(config.name.clone()), terminal)?);
    }
    for port in &made {
        let (terminal, bell) = port.ends();
        event_loop.add_console(terminal, bell)?;
    }
    Ok(made)
}

fn make_serial(files: ConsoleFiles, vm: &Arc<VmFd>, event_loop: &mut EventLoop) -> io::Result<Arc<SerialPort>> {
    let terminal = Terminal::new("serial", files.output, files.input);
    let line = Pin::new(vm.clone(), serial::IRQ.into()).share(0);
    let port = Arc::new(SerialPort::new(terminal.clone(), line));
    event_loop.add_console(terminal, port.clone())?;
    Ok(port)
}

/// Slot of KVM's memory map for configuration space; RAM has the ones below.
const CONFIG_SLOT: u32 = 16;

/// Lets the guest read configuration space without exits, where KVM has read-only memory.
fn show_config_space(pci: &mut PciBus, vm: &Arc<VmFd>) -> io::Result<()> {
    if !vm.check_extension(Cap::ReadonlyMem) {
        return Ok(());
    }
    let pages = ConfigPages::new(pci.functions())?;
    let region = kvm_userspace_memory_region {
        slot: CONFIG_SLOT,
        flags: KVM_MEM_READONLY,
        guest_phys_addr: ECAM.0,
        memory_size: pages.len(),
        userspace_addr: pages.address(),
    };
    // SAFETY: the range is ours and outlives the slot: the bus drops it only after `unmap`, or with the VM.
    let mapped = unsafe { vm.set_user_memory_region(region) };
    // Refused: then every read exits, which is as right.
    if mapped.is_ok() {
        pci.show(pages, Box::new(ConfigSlot(vm.clone())));
    }
    Ok(())
}

struct ConfigSlot(Arc<VmFd>);

impl Unmap for ConfigSlot {
    fn unmap(&self) -> Result<(), End> {
        let region = kvm_userspace_memory_region { slot: CONFIG_SLOT, ..Default::default() };
        // SAFETY: a size of zero removes the slot.
        unsafe { self.0.set_user_memory_region(region) }
            .map_err(|e| End::host_fault(format!("kvm: cannot unmap configuration space: {e}")))
    }
}

/// Gives each device its slot, BAR and interrupt line.
fn plug(
    devices: Vec<Box<dyn Device>>,
    event_loop: &mut EventLoop,
    vm: &Arc<VmFd>,
    machine: &Machine,
) -> Result<PciBus, IrqError> {
    let mut pci = PciBus::new();
    let pins: Vec<Arc<Pin>> = (0..8).map(|n| Pin::new(vm.clone(), acpi::pci_gsi(n))).collect();
    for (n, device) in devices.into_iter().enumerate() {
        // Device 0 is the host bridge.
        let number = n + 1;
        let gsi = acpi::pci_gsi(number);
        let line = pins[number % 8].share(number as u32);
        let bar = PCI_WINDOW.0 as u32 + BAR_SIZE * number as u32;
        let function = VirtioFunction::new(n, &*device, bar, gsi as u8, Some(line), machine.clone())?;
        pci.add(Box::new(function));
        event_loop.add(device);
    }
    Ok(pci)
}

/// The address maps.
fn wire(pci: PciBus, pci_ports: bool, pit: bool, power: Arc<power::Power>, serial: Option<Arc<SerialPort>>) -> Buses {
    let pci = Arc::new(pci);
    let (mut pio, mut mmio) = (Bus::default(), Bus::default());
    mmio.insert(PCI_WINDOW.0, PCI_WINDOW.1, Arc::new(Window(pci.clone())));
    mmio.insert(ECAM.0, ECAM.1, Arc::new(Ecam(pci.clone())));
    if pci_ports {
        pio.insert(0xcf8, 8, Arc::new(ConfigPorts(pci)));
    }
    pio.insert(power::BASE.into(), power::LEN.into(), power);
    pio.insert(power::KEYBOARD_PORT.into(), 1, Arc::new(power::KeyboardReset));
    if !pit {
        pio.insert(power::SPEAKER_PORT.into(), 1, Arc::new(power::NoSpeaker));
    }
    if let Some(port) = serial {
        pio.insert(serial::BASE.into(), serial::LEN.into(), port);
    }
    Buses { pio, mmio }
}

struct KvmDoorbells(Arc<VmFd>);

impl Doorbells for KvmDoorbells {
    fn connect(&self, address: u64, eventfd: &EventFd) -> Result<(), IrqError> {
        let done = self.0.register_ioevent(eventfd, &IoEventAddress::Mmio(address), NoDatamatch);
        done.map_err(|e| IrqError::Io { what: "connect a doorbell", source: io::Error::from_raw_os_error(e.errno()) })
    }

    fn disconnect(&self, address: u64, eventfd: &EventFd) -> Result<(), IrqError> {
        let done = self.0.unregister_ioevent(eventfd, &IoEventAddress::Mmio(address), NoDatamatch);
        done.map_err(|e| IrqError::Io {
            what: "disconnect a doorbell",
            source: io::Error::from_raw_os_error(e.errno()),
        })
    }
}

/// One heap for all threads: arenas of their own would cost each thread memory that it never uses.
fn quiet_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: numbers only; called before other threads exist.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
