//! Interrupt routing: which GSI carries which MSI, and the level-triggered lines of the IO-APIC.
//!
//! GSIs 0..=23 are the IO-APIC's pins (0..=15 also the legacy PIC's); MSIs get numbers from 24 on.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::interrupt::IrqLine;

/// Pins of the IO-APIC.
pub const IOAPIC_PINS: u32 = 24;
/// Most MSIs of one VM; KVM takes 4096 routes.
const MAX_MSIS: usize = 1024;

/// A global system interrupt number.
pub type Gsi = u32;

/// What a device writes to the local APIC to interrupt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MsiMessage {
    /// Address, 0xFEE.....
    pub address: u64,
    /// Data: vector and delivery mode.
    pub data: u32,
}

/// KVM refused an interrupt.
#[derive(Debug, Error)]
pub enum IrqError {
    /// A call failed.
    #[error("interrupts: cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// How it failed.
        source: io::Error,
    },
    /// Too many.
    #[error("interrupts: all {MAX_MSIS} message interrupts are in use")]
    Exhausted,
}

/// Connects eventfds to MSIs. Called on vCPU threads.
pub trait MsiRouter: Send + Sync + std::fmt::Debug {
    /// A free GSI.
    ///
    /// # Errors
    /// [`IrqError::Exhausted`].
    fn allocate(&self) -> Result<Gsi, IrqError>;
    /// Makes `gsi` deliver `message`.
    ///
    /// # Errors
    /// When KVM refuses.
    fn route(&self, gsi: Gsi, message: MsiMessage) -> Result<(), IrqError>;
    /// Makes `eventfd` raise `gsi`; an eventfd that is already readable raises it at once.
    ///
    /// # Errors
    /// When KVM refuses.
    fn attach(&self, gsi: Gsi, eventfd: &EventFd) -> Result<(), IrqError>;
    /// Undoes [`MsiRouter::attach`].
    ///
    /// # Errors
    /// When KVM refuses.
    fn detach(&self, gsi: Gsi, eventfd: &EventFd) -> Result<(), IrqError>;
}

/// The routes of one VM in KVM.
#[derive(Debug)]
pub struct KvmRouter {
    vm: Arc<VmFd>,
    messages: Mutex<Vec<Option<MsiMessage>>>,
}

impl KvmRouter {
    /// Starts with the IO-APIC and PIC pins that KVM sets up by itself.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, messages: Mutex::new(Vec::new()) }
    }
}

impl MsiRouter for KvmRouter {
    fn allocate(&self) -> Result<Gsi, IrqError> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        if messages.len() >= MAX_MSIS {
            return Err(IrqError::Exhausted);
        }
        messages.push(None);
        Ok(IOAPIC_PINS + messages.len() as Gsi - 1)
    }

    fn route(&self, gsi: Gsi, message: MsiMessage) -> Result<(), IrqError> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = gsi.checked_sub(IOAPIC_PINS).and_then(|n| messages.get_mut(n as usize)) {
            *slot = Some(message);
        }
        let routing = KvmIrqRouting::from_entries(&entries(&messages)).map_err(|_| IrqError::Exhausted)?;
        self.vm.set_gsi_routing(&routing).map_err(refused("route an MSI"))
    }

    fn attach(&self, gsi: Gsi, eventfd: &EventFd) -> Result<(), IrqError> {
        self.vm.register_irqfd(eventfd, gsi).map_err(refused("attach an irqfd"))
    }

    fn detach(&self, gsi: Gsi, eventfd: &EventFd) -> Result<(), IrqError> {
        self.vm.unregister_irqfd(eventfd, gsi).map_err(refused("detach an irqfd"))
    }
}

fn refused(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> IrqError {
    move |e| IrqError::Io { what, source: io::Error::from_raw_os_error(e.errno()) }
}

/// KVM's own pin routes plus ours: setting routes replaces all of them.
fn entries(messages: &[Option<MsiMessage>]) -> Vec<kvm_irq_routing_entry> {
    let pin = |gsi: u32, irqchip: u32, pin: u32| {
        let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
        entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
        entry
    };
    let mut entries = Vec::with_capacity(40 + messages.len());
    for gsi in 0..IOAPIC_PINS {
        match gsi {
            0..8 => entries.push(pin(gsi, KVM_IRQCHIP_PIC_MASTER, gsi)),
            8..16 => entries.push(pin(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8)),
            _ => {}
        }
        entries.push(pin(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    }
    for (gsi, message) in (IOAPIC_PINS..).zip(messages) {
        let Some(message) = message else { continue };
        let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
        entry.u.msi = kvm_irq_routing_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..Default::default()
        };
        entries.push(entry);
    }
    entries
}

/// One IO-APIC pin shared by several level-triggered sources, each on a thread of its own.
pub struct Pin {
    drive: Box<dyn Fn(bool) + Send + Sync>,
    /// Sources that assert it. Held while the pin is driven: a level that a slower thread drives late would stay, and
    /// every interrupt after it be lost.
    asserted: Mutex<u32>,
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pin").field("asserted", &self.asserted).finish_non_exhaustive()
    }
}

impl Pin {
    /// The pin with number `gsi`.
    pub fn new(vm: Arc<VmFd>, gsi: Gsi) -> Arc<Self> {
        // The pin exists as long as the VM does; a refusal could only mean the VM is going away.
        Self::driven_by(move |high| {
            let _ = vm.set_irq_line(gsi, high);
        })
    }

    fn driven_by(drive: impl Fn(bool) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { drive: Box::new(drive), asserted: Mutex::new(0) })
    }

    /// Source `index` (0..=31) of this pin.
    pub fn share(self: &Arc<Self>, index: u32) -> Arc<dyn IrqLine> {
        Arc::new(Share { pin: self.clone(), bit: 1 << (index % 32) })
    }
}

#[derive(Debug)]
struct Share {
    pin: Arc<Pin>,
    bit: u32,
}

impl IrqLine for Share {
    fn set(&self, asserted: bool) {
        let mut sources = self.pin.asserted.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *sources;
        *sources = if asserted { before | self.bit } else { before & !self.bit };
        if (before == 0) != (*sources == 0) {
            (self.pin.drive)(*sources != 0);
        }
    }
}

/// A router that only writes down what it was told.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Call {
        Allocate,
        Route(Gsi, MsiMessage),
        Attach(Gsi),
        Detach(Gsi),
    }

    #[derive(Debug, Default)]
    pub(crate) struct RecordingRouter(Mutex<Vec<Call>>);

    impl RecordingRouter {
        pub(crate) fn calls(&self) -> Vec<Call> {
            self.0.lock().unwrap().clone()
        }

        fn record(&self, call: Call) {
            self.0.lock().unwrap().push(call);
        }
    }

    impl MsiRouter for RecordingRouter {
        fn allocate(&self) -> Result<Gsi, IrqError> {
            let before = self.calls().iter().filter(|c| **c == Call::Allocate).count() as u32;
            self.record(Call::Allocate);
            Ok(IOAPIC_PINS + before)
        }

        fn route(&self, gsi: Gsi, message: MsiMessage) -> Result<(), IrqError> {
            self.record(Call::Route(gsi, message));
            Ok(())
        }

        fn attach(&self, gsi: Gsi, _: &EventFd) -> Result<(), IrqError> {
            self.record(Call::Attach(gsi));
            Ok(())
        }

        fn detach(&self, gsi: Gsi, _: &EventFd) -> Result<(), IrqError> {
            self.record(Call::Detach(gsi));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pin_is_high_while_any_source_asserts_it() {
        let levels = Arc::new(Mutex::new(Vec::new()));
        let seen = levels.clone();
        let pin = Pin::driven_by(move |high| seen.lock().unwrap().push(high));
        let (a, b) = (pin.share(0), pin.share(1));
        for (source, asserted) in [(&a, true), (&b, true), (&a, false), (&a, false), (&b, false), (&b, true)] {
            source.set(asserted);
        }
        assert_eq!(*levels.lock().unwrap(), [true, false, true]);
    }

    /// A thread that is slow between deciding and driving must not leave the pin at the wrong level.
    #[test]
    fn pin_keeps_the_level_of_its_sources_when_threads_race() {
        let level = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let driven = level.clone();
        let pin = Pin::driven_by(move |high| {
            std::thread::yield_now();
            driven.store(high, std::sync::atomic::Ordering::Release);
        });
        for _ in 0..200 {
            let (raiser, reader) = (pin.share(0), pin.share(0));
            let thread = std::thread::spawn(move || (0..20).for_each(|_| raiser.set(true)));
            (0..20).for_each(|_| reader.set(false));
            thread.join().unwrap();
            let asserted = *pin.asserted.lock().unwrap() != 0;
            assert_eq!(level.load(std::sync::atomic::Ordering::Acquire), asserted);
        }
    }

    #[test]
    fn message_routes_leave_the_pins_in_place() {
        let message = MsiMessage { address: 0x1_fee0_0000, data: 7 };
        let entries = entries(&[None, Some(message)]);
        assert_eq!(entries.len(), 16 + 24 + 1);
        let last = entries.last().unwrap();
        assert_eq!((last.gsi, last.type_), (25, KVM_IRQ_ROUTING_MSI));
        // SAFETY: the entry's type says which member of the union is set.
        let msi = unsafe { last.u.msi };
        assert_eq!((msi.address_lo, msi.address_hi, msi.data), (0xfee0_0000, 1, 7));
        let pic: Vec<_> = entries.iter().filter(|e| e.gsi == 9).collect();
        assert_eq!(pic.len(), 2, "PIC and IO-APIC");
    }
}
