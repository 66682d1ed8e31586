//! PCI bus 0: configuration through ECAM (reads mostly without an exit, see [`super::pages`]) or, when asked for, ports
//! 0xCF8/0xCFC; memory through BARs.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::config::{ConfigSpace, Identity, SPACE};
use super::pages::ConfigPages;
use crate::bus::BusDevice;
use crate::memory::PCI_WINDOW;
use holdfast_model::contract::end::End;

/// Device numbers of a bus.
pub const SLOTS: usize = 32;
/// "No BAR": above every address of the window.
const UNMAPPED: u64 = u64::MAX;

/// One PCI function. Called with its lock held, on vCPU threads.
pub trait Function: Send {
    /// Configuration read; `offset` + length is at most 256.
    ///
    /// # Errors
    /// [`End`] when the VM cannot go on.
    fn config_read(&mut self, offset: usize, data: &mut [u8]) -> Result<(), End>;
    /// Configuration write.
    ///
    /// # Errors
    /// [`End`] when the VM cannot go on.
    fn config_write(&mut self, offset: usize, data: &[u8]) -> Result<(), End>;
    /// Configuration space as a read finds it now.
    fn config_bytes(&self) -> &[u8; SPACE];
    /// Whether a configuration read would do something beside reading, so that it must reach this process.
    fn config_reads_act(&self) -> bool {
        false
    }
    /// Address and size of BAR 0 while it is mapped.
    fn bar(&self) -> Option<(u64, u64)>;
    /// Memory read at `offset` of BAR 0.
    ///
    /// # Errors
    /// [`End`] when the VM cannot go on.
    fn bar_read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), End>;
    /// Memory write at `offset` of BAR 0.
    ///
    /// # Errors
    /// [`End`] when the VM cannot go on.
    fn bar_write(&mut self, offset: u64, data: &[u8]) -> Result<(), End>;
}

struct Slot {
    /// Copy of [`Function::bar`], so that finding the right function takes no lock.
    bar: AtomicU64,
    size: AtomicU64,
    function: Mutex<Box<dyn Function>>,
}

/// Undoes the guest's view of [`ConfigPages`]: reads exit again.
pub trait Unmap: Send + Sync {
    /// Takes the pages from the guest.
    ///
    /// # Errors
    /// [`End`] when the kernel refuses.
    fn unmap(&self) -> Result<(), End>;
}

/// Pages that the guest sees, until they are taken away.
struct Shown {
    pages: ConfigPages,
    unmap: Box<dyn Unmap>,
}

/// The bus. Functions are fixed before the VM starts.
#[derive(Default)]
pub struct PciBus {
    slots: Vec<Slot>,
    config_address: AtomicU32,
    /// Taken with a slot's lock held, never the other way round.
    shown: Mutex<Option<Shown>>,
}

impl PciBus {
    /// A bus with only its host bridge, device 0.
    pub fn new() -> Self {
        let mut bus = Self::default();
        bus.add(Box::new(HostBridge::new()));
        bus
    }

    /// Plugs a function into the next device number, which is returned.
    ///
    /// # Panics
    /// When the bus is full; the configuration was checked before.
    pub fn add(&mut self, function: Box<dyn Function>) -> usize {
        assert!(self.slots.len() < SLOTS, "PCI bus is full");
        self.slots.push(Slot {
            bar: AtomicU64::new(UNMAPPED),
            size: AtomicU64::new(0),
            function: Mutex::new(function),
        });
        self.slots.len() - 1
    }

    /// Functions, with the host bridge.
    pub fn functions(&self) -> usize {
        self.slots.len()
    }

    /// From now on configuration writes are published in `pages`, which the guest reads until `unmap`.
    pub fn show(&mut self, pages: ConfigPages, unmap: Box<dyn Unmap>) {
        for (device, slot) in self.slots.iter().enumerate() {
            pages.publish(device, lock(slot).config_bytes());
        }
        self.shown = Mutex::new(Some(Shown { pages, unmap }));
    }

    /// Publishes what a write changed; ends the short cut for good when reads must reach their function.
    fn publish(&self, device: usize, function: &dyn Function) -> Result<(), End> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        match &*shown {
            Some(Shown { unmap, .. }) if function.config_reads_act() => {
                unmap.unmap()?;
                *shown = None;
            }
            Some(Shown { pages, .. }) => pages.publish(device, function.config_bytes()),
            None => {}
        }
        Ok(())
    }

    /// Configuration access. `address` is bus, device, function and register as in ECAM (12 bits of register).
    fn config(&self, address: u64, access: Access<'_>) -> Result<(), End> {
        let offset = (address & 0xfff) as usize;
        let function = (address >> 12) & 7;
        let device = (address >> 15) & 0x1f;
        let bus = address >> 20;
        let slot = self.slots.get(device as usize).filter(|_| bus == 0 && function == 0);
        match (slot, access) {
            (None, Access::Read(data)) => data.fill(0xff),
            (None, Access::Write(_)) => {}
            // Extended configuration space is empty.
            (Some(_), Access::Read(data)) if offset + data.len() > 256 => data.fill(0),
            (Some(_), Access::Write(data)) if offset + data.len() > 256 => {}
            (Some(slot), Access::Read(data)) => lock(slot).config_read(offset, data)?,
            (Some(slot), Access::Write(data)) => {
                let mut function = lock(slot);
                function.config_write(offset, data)?;
                self.publish(device as usize, &**function)?;
                let (bar, size) = function.bar().unwrap_or((UNMAPPED, 0));
                slot.size.store(size, Ordering::Release);
                slot.bar.store(bar, Ordering::Release);
            }
        }
        Ok(())
    }

    /// Device number, slot and offset of the BAR that holds `address`.
    fn find(&self, address: u64) -> Option<(usize, &Slot, u64)> {
        self.slots.iter().enumerate().find_map(|(device, slot)| {
            let offset = address.checked_sub(slot.bar.load(Ordering::Acquire))?;
            (offset < slot.size.load(Ordering::Acquire)).then_some((device, slot, offset))
        })
    }

    fn memory(&self, address: u64, access: Access<'_>) -> Result<(), End> {
        match (self.find(address), access) {
            (Some((_, slot, offset)), Access::Read(data)) => lock(slot).bar_read(offset, data),
            (Some((_, slot, offset)), Access::Write(data)) => lock(slot).bar_write(offset, data),
            (None, Access::Read(data)) => {
                data.fill(0xff);
                Ok(())
            }
            (None, Access::Write(_)) => Ok(()),
        }
    }
}

enum Access<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

fn lock(slot: &Slot) -> std::sync::MutexGuard<'_, Box<dyn Function>> {
    slot.function.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ports 0xCF8..=0xCFF (configuration mechanism 1).
pub struct ConfigPorts(pub Arc<PciBus>);

impl ConfigPorts {
    fn access(&self, offset: u64, access: Access<'_>) -> Result<(), End> {
        match (offset, access) {
            (0, Access::Read(data)) if data.len() == 4 => {
                data.copy_from_slice(&self.0.config_address.load(Ordering::Relaxed).to_le_bytes());
                Ok(())
            }
            (0, Access::Write(&[a, b, c, d])) => {
                self.0.config_address.store(u32::from_le_bytes([a, b, c, d]), Ordering::Relaxed);
                Ok(())
            }
            (4..8, access) => {
                let address = self.0.config_address.load(Ordering::Relaxed);
                if address & 1 << 31 == 0 {
                    if let Access::Read(data) = access {
                        data.fill(0xff);
                    }
                    return Ok(());
                }
                let register = u64::from(address & 0xfc) + (offset - 4);
                self.0.config(u64::from(address >> 8 & 0xffff) << 12 | register, access)
            }
            (_, Access::Read(data)) => {
                data.fill(0xff);
                Ok(())
            }
            (_, Access::Write(_)) => Ok(()),
        }
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), End> {
        self.access(offset, Access::Read(data))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), End> {
        self.access(offset, Access::Write(data))
    }

    fn describe(&self, offset: u64) -> String {
        if offset < 4 { "PCI configuration address".into() } else { "PCI configuration data".into() }
    }
}

/// Enhanced configuration access.
pub struct Ecam(pub Arc<PciBus>);

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), End> {
        self.0.config(offset, Access::Read(data))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), End> {
        self.0.config(offset, Access::Write(data))
    }

    fn describe(&self, offset: u64) -> String {
        let (device, function, register) = (offset >> 15 & 0x1f, offset >> 12 & 7, offset & 0xfff);
        format!("PCI {device:02x}.{function} configuration {register:#x}")
    }
}

/// The memory window that BARs live in.
pub struct Window(pub Arc<PciBus>);

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), End> {
        self.0.memory(PCI_WINDOW.0 + offset, Access::Read(data))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), End> {
        self.0.memory(PCI_WINDOW.0 + offset, Access::Write(data))
    }

    fn describe(&self, offset: u64) -> String {
        match self.0.find(PCI_WINDOW.0 + offset) {
            Some((device, _, offset)) => format!("PCI {device:02x}.0 memory {offset:#x}"),
            None => "PCI memory without a device".into(),
        }
    }
}

/// Device 0: says that there is a bus.
struct HostBridge(ConfigSpace);

impl HostBridge {
    fn new() -> Self {
        // Red Hat's generic PCIe host bridge: needs no driver.
        Self(ConfigSpace::new(Identity {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: 0x06_0000,
            subsystem_vendor: 0,
            subsystem: 0,
            interrupt_pin: 0,
            interrupt_line: 0,
        }))
    }
}

impl Function for HostBridge {
    fn config_read(&mut self, offset: usize, data: &mut [u8]) -> Result<(), End> {
        self.0.read(offset, data);
        Ok(())
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) -> Result<(), End> {
        self.0.write(offset, data);
        Ok(())
    }

    fn config_bytes(&self) -> &[u8; SPACE] {
        self.0.bytes()
    }

    fn bar(&self) -> Option<(u64, u64)> {
        None
    }

    fn bar_read(&mut self, _: u64, data: &mut [u8]) -> Result<(), End> {
        data.fill(0xff);
        Ok(())
    }

    fn bar_write(&mut self, _: u64, _: &[u8]) -> Result<(), End> {
        Ok(())
    }
}

/// Fuzz entry: arbitrary accesses by all three ways end in a value or a named fault, and what the guest sees without an
/// exit is what an exit would have read.
#[doc(hidden)]
pub fn fuzz_bus(data: &[u8]) {
    struct Forget;

    impl Unmap for Forget {
        fn unmap(&self) -> Result<(), End> {
            Ok(())
        }
    }

    let (Some((function, _)), Ok(pages)) = (super::virtio::testing::function(), ConfigPages::new(2)) else {
        return;
    };
    let mut bus = PciBus::new();
    bus.add(Box::new(function));
    bus.show(pages, Box::new(Forget));
    let bus = Arc::new(bus);
    let ways: [Box<dyn BusDevice>; 3] =
        [Box::new(ConfigPorts(bus.clone())), Box::new(Ecam(bus.clone())), Box::new(Window(bus.clone()))];
    for step in data.chunks(10) {
        let byte = |n: usize| step.get(n).copied().unwrap_or(0);
        let len = 1usize << (byte(0) >> 4 & 3);
        let mut value = [byte(2), byte(3), byte(4), byte(5), byte(6), byte(7), byte(8), byte(9)];
        let way = byte(0) % 3;
        let offset = match way {
            0 => u64::from(byte(1) & 7),
            1 => u64::from(byte(1)) | u64::from(byte(0) >> 6) << 15,
            _ => u64::from(byte(1)) << 6 | u64::from(byte(9) & 0x3f),
        };
        let device = &ways[usize::from(way)];
        let done =
            if byte(0) & 8 == 0 { device.read(offset, &mut value[..len]) } else { device.write(offset, &value[..len]) };
        if done.is_err() {
            return;
        }
        let shown = bus.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shown) = &*shown {
            for (device, slot) in bus.slots.iter().enumerate() {
                assert!(shown.pages.shows(device, lock(slot).config_bytes()), "device {device}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn host_bridge_is_found_by_both_mechanisms() {
        let bus = Arc::new(PciBus::new());
        let (ports, ecam) = (ConfigPorts(bus.clone()), Ecam(bus));
        let mut id = [0; 4];
        ecam.read(0, &mut id).unwrap();
        assert_eq!(id, [0x36, 0x1b, 0x08, 0x00]);
        ports.write(0, &0x8000_0008u32.to_le_bytes()).unwrap();
        let mut class = [0; 2];
        ports.read(6, &mut class).unwrap();
        assert_eq!(class, [0x00, 0x06]);
    }

    #[test]
    fn absent_devices_functions_and_buses_read_as_ones() {
        let bus = Arc::new(PciBus::new());
        let (ports, ecam) = (ConfigPorts(bus.clone()), Ecam(bus));
        for address in [1u64 << 15, 1 << 12, 0xf_f000] {
            let mut id = [0; 4];
            ecam.read(address, &mut id).unwrap();
            assert_eq!(id, [0xff; 4], "{address:#x}");
        }
        ports.write(0, &0x8001_0000u32.to_le_bytes()).unwrap();
        let mut id = [0; 4];
        ports.read(4, &mut id).unwrap();
        assert_eq!(id, [0xff; 4]);
        ports.write(0, &0x0000_0000u32.to_le_bytes()).unwrap();
        ports.read(4, &mut id).unwrap();
        assert_eq!(id, [0xff; 4], "enable bit off");
    }

    #[derive(Default)]
    struct Unmapped(std::sync::atomic::AtomicUsize);

    impl Unmap for Arc<Unmapped> {
        fn unmap(&self) -> Result<(), End> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    /// A function with a register whose read must reach it, once it is armed by byte 0x41.
    struct Armed(ConfigSpace);

    impl Function for Armed {
        fn config_read(&mut self, offset: usize, data: &mut [u8]) -> Result<(), End> {
            self.0.read(offset, data);
            Ok(())
        }
        fn config_write(&mut self, offset: usize, data: &[u8]) -> Result<(), End> {
            self.0.set(offset, data);
            Ok(())
        }
        fn config_bytes(&self) -> &[u8; SPACE] {
            self.0.bytes()
        }
        fn config_reads_act(&self) -> bool {
            self.0.bytes()[0x41] != 0
        }
        fn bar(&self) -> Option<(u64, u64)> {
            None
        }
        fn bar_read(&mut self, _: u64, _: &mut [u8]) -> Result<(), End> {
            Ok(())
        }
        fn bar_write(&mut self, _: u64, _: &[u8]) -> Result<(), End> {
            Ok(())
        }
    }

    #[test]
    fn writes_are_published_until_a_read_must_reach_its_function() {
        let mut bus = PciBus::new();
        let identity = Identity { vendor: 0x1af4, ..Identity::default() };
        let device = bus.add(Box::new(Armed(ConfigSpace::new(identity)))) as u64;
        let unmapped = Arc::new(Unmapped::default());
        bus.show(ConfigPages::new(bus.functions()).unwrap(), Box::new(unmapped.clone()));
        let ecam = Ecam(Arc::new(bus));
        let read = |at: usize| ecam.0.shown.lock().unwrap().as_ref().map(|shown| shown.pages.word(0x8000 + at));
        assert_eq!(read(0), Some(0x1af4), "published when first shown");
        ecam.write(device << 15 | 0x40, &[7]).unwrap();
        assert_eq!((read(0x40), unmapped.0.load(Ordering::Relaxed)), (Some(7), 0));
        ecam.write(device << 15 | 0x41, &[1]).unwrap();
        assert_eq!((read(0), unmapped.0.load(Ordering::Relaxed)), (None, 1));
        ecam.write(device << 15 | 0x41, &[1]).unwrap();
        assert_eq!(unmapped.0.load(Ordering::Relaxed), 1, "once");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_the_guest_sees_is_what_an_exit_would_read(data in proptest::collection::vec(any::<u8>(), 0..400)) {
            fuzz_bus(&data);
        }
    }
}
