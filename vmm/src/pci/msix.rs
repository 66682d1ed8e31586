//! MSI-X (PCI Local Bus 3.0 §6.8.2): a table of vectors, each masked until the driver unmasks it.
//!
//! KVM is told of a vector only when it is unmasked: one route and one irqfd then, none for the many writes before. While
//! it is masked KVM does not listen to the vector's eventfd, so a pending interrupt waits there (and is the PBA bit).

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::registers::{self, Access, Block, register};
use crate::irq::{Gsi, IrqError, MsiMessage, MsiRouter};

/// Registers of a table entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EntryRegister {
    AddressLow,
    AddressHigh,
    Data,
    Control,
}

/// A table entry (§6.8.2.6 to §6.8.2.9). The address is that of a dword; of the control word only the mask bit exists.
const ENTRY_BLOCK: Block<EntryRegister> = Block::new(&[
    register(0, 4, EntryRegister::AddressLow, Access::Bits(!3)),
    register(4, 4, EntryRegister::AddressHigh, Access::ReadWrite),
    register(8, 4, EntryRegister::Data, Access::ReadWrite),
    register(12, 4, EntryRegister::Control, Access::Bits(1)),
]);
/// Bytes of a table entry.
pub const ENTRY: u64 = ENTRY_BLOCK.len() as u64;
/// Control bit of the capability: MSI-X on.
pub const ENABLE: u16 = 1 << 15;
/// Control bit: all vectors masked.
pub const MASK_ALL: u16 = 1 << 14;

#[derive(Debug)]
struct Vector {
    message: MsiMessage,
    masked: bool,
    eventfd: Arc<EventFd>,
    gsi: Option<Gsi>,
    /// What KVM delivers for this vector now.
    live: Option<MsiMessage>,
}

impl Vector {
    fn read(&self, name: EntryRegister) -> u32 {
        match name {
            EntryRegister::AddressLow => self.message.address as u32,
            EntryRegister::AddressHigh => (self.message.address >> 32) as u32,
            EntryRegister::Data => self.message.data,
            EntryRegister::Control => self.masked.into(),
        }
    }

    fn write(&mut self, name: EntryRegister, value: u32) {
        let address = &mut self.message.address;
        match name {
            EntryRegister::AddressLow => *address = *address & !0xffff_ffff | u64::from(value),
            EntryRegister::AddressHigh => *address = *address & 0xffff_ffff | u64::from(value) << 32,
            EntryRegister::Data => self.message.data = value,
            EntryRegister::Control => self.masked = value != 0,
        }
    }
}

/// The vector table of one function.
#[derive(Debug)]
pub struct Msix {
    vectors: Vec<Vector>,
    control: u16,
    router: Arc<dyn MsiRouter>,
}

impl Msix {
    /// `count` vectors, all masked.
    ///
    /// # Errors
    /// When eventfds run out.
    pub fn new(count: u16, router: Arc<dyn MsiRouter>) -> Result<Self, IrqError> {
        let vectors = (0..count)
            .map(|_| {
                let eventfd = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
                    .map_err(|source| IrqError::Io { what: "make an eventfd", source })?;
                let message = MsiMessage::default();
                Ok(Vector { message, masked: true, eventfd: Arc::new(eventfd), gsi: None, live: None })
            })
            .collect::<Result<_, IrqError>>()?;
        Ok(Self { vectors, control: 0, router })
    }

    /// What a device writes to interrupt.
    pub fn eventfds(&self) -> Vec<Arc<EventFd>> {
        self.vectors.iter().map(|v| v.eventfd.clone()).collect()
    }

    /// Bytes of the table.
    pub fn table_len(&self) -> u64 {
        self.vectors.len() as u64 * ENTRY
    }

    /// The driver wrote the capability's message control word.
    ///
    /// # Errors
    /// When KVM refuses a route.
    pub fn set_control(&mut self, control: u16) -> Result<(), IrqError> {
        self.control = control & (ENABLE | MASK_ALL);
        self.sync_all()
    }

    /// Whether MSI-X is on.
    pub fn enabled(&self) -> bool {
        self.control & ENABLE != 0
    }

    /// A driver's read of the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let mut entry = [0u8; ENTRY as usize];
        let at = (offset % ENTRY) as usize;
        if let Some(vector) = usize::try_from(offset / ENTRY).ok().and_then(|n| self.vectors.get(n)) {
            for row in ENTRY_BLOCK.registers() {
                entry[row.offset.into()..][..row.width.into()].copy_from_slice(&vector.read(row.name).to_le_bytes());
            }
        }
        for (n, byte) in data.iter_mut().enumerate() {
            *byte = entry.get(at + n).copied().unwrap_or(0);
        }
    }

    /// A driver's write to the table: aligned 4 or 8 bytes, others are undefined and ignored.
    ///
    /// # Errors
    /// When KVM refuses a route.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) -> Result<(), IrqError> {
        let aligned = matches!(data.len(), 4 | 8) && offset.is_multiple_of(data.len() as u64);
        let Some(index) = usize::try_from(offset / ENTRY).ok().filter(|n| aligned && *n < self.vectors.len()) else {
            return Ok(());
        };
        let vector = &mut self.vectors[index];
        for (at, word) in (offset % ENTRY..).step_by(4).zip(data.chunks_exact(4)) {
            if let Some(row) = ENTRY_BLOCK.at(at, 4) {
                vector.write(row.name, registers::value(word) & row.access.writable());
            }
        }
        self.sync(index)
    }

    /// A driver's read of the pending bits.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (n, byte) in (offset..).zip(data.iter_mut()) {
            *byte = 0;
            for bit in 0..8 {
                let index = usize::try_from(n).unwrap_or(usize::MAX).saturating_mul(8).saturating_add(bit);
                if self.vectors.get(index).is_some_and(|v| v.live.is_none() && pending(&v.eventfd)) {
                    *byte |= 1 << bit;
                }
            }
        }
    }

    /// Back to power-on: off, all masked, nothing pending.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn reset(&mut self) -> Result<(), IrqError> {
        for vector in &mut self.vectors {
            vector.masked = true;
            vector.message = MsiMessage::default();
        }
        self.control = 0;
        self.sync_all()?;
        for vector in &self.vectors {
            let _ = vector.eventfd.read();
        }
        Ok(())
    }

    fn sync_all(&mut self) -> Result<(), IrqError> {
        (0..self.vectors.len()).try_for_each(|index| self.sync(index))
    }

    /// Makes KVM deliver what the registers say for one vector.
    fn sync(&mut self, index: usize) -> Result<(), IrqError> {
        let open = self.control & (ENABLE | MASK_ALL) == ENABLE;
        let vector = &mut self.vectors[index];
        let wanted = (open && !vector.masked).then_some(vector.message);
        if wanted == vector.live {
            return Ok(());
        }
        let gsi = match vector.gsi {
            Some(gsi) => gsi,
            None => *vector.gsi.insert(self.router.allocate()?),
        };
        match (vector.live, wanted) {
            (_, None) => self.router.detach(gsi, &vector.eventfd)?,
            (None, Some(message)) => {
                self.router.route(gsi, message)?;
                self.router.attach(gsi, &vector.eventfd)?;
            }
            (Some(_), Some(message)) => self.router.route(gsi, message)?,
        }
        vector.live = wanted;
        Ok(())
    }
}

fn pending(eventfd: &EventFd) -> bool {
    use std::os::fd::AsRawFd;
    let mut poll = libc::pollfd { fd: eventfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd, no waiting.
    unsafe { libc::poll(&mut poll, 1, 0) == 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::testing::{Call, RecordingRouter};
    use proptest::prelude::*;

    fn table() -> (Msix, Arc<RecordingRouter>) {
        let router = Arc::new(RecordingRouter::default());
        (Msix::new(2, router.clone()).unwrap(), router)
    }

    fn program(msix: &mut Msix) {
        msix.write_table(16, &0xfee0_1000u32.to_le_bytes()).unwrap();
        msix.write_table(20, &0u32.to_le_bytes()).unwrap();
        msix.write_table(24, &0x41u32.to_le_bytes()).unwrap();
    }

    const MESSAGE: MsiMessage = MsiMessage { address: 0xfee0_1000, data: 0x41 };

    #[test]
    fn kvm_hears_of_a_vector_once_when_it_is_unmasked() {
        let (mut msix, router) = table();
        msix.set_control(ENABLE | MASK_ALL).unwrap();
        program(&mut msix);
        msix.write_table(28, &0u32.to_le_bytes()).unwrap();
        assert!(router.calls().is_empty(), "function still masked");
        msix.set_control(ENABLE).unwrap();
        assert_eq!(router.calls(), [Call::Allocate, Call::Route(24, MESSAGE), Call::Attach(24)]);
    }

    #[test]
    fn masked_vector_keeps_its_interrupt_pending_until_unmasked() {
        let (mut msix, router) = table();
        msix.set_control(ENABLE).unwrap();
        program(&mut msix);
        msix.write_table(28, &0u32.to_le_bytes()).unwrap();
        msix.write_table(28, &1u32.to_le_bytes()).unwrap();
        assert_eq!(router.calls().last(), Some(&Call::Detach(24)));
        let mut bits = [0];
        msix.read_pending(0, &mut bits);
        assert_eq!(bits, [0]);
        msix.eventfds()[1].write(1).unwrap();
        msix.read_pending(0, &mut bits);
        assert_eq!(bits, [2]);
        msix.write_table(28, &0u32.to_le_bytes()).unwrap();
        assert_eq!(router.calls().last(), Some(&Call::Attach(24)));
    }

    #[test]
    fn changed_message_of_a_live_vector_is_routed_anew() {
        let (mut msix, router) = table();
        msix.set_control(ENABLE).unwrap();
        program(&mut msix);
        msix.write_table(28, &0u32.to_le_bytes()).unwrap();
        msix.write_table(24, &0x42u32.to_le_bytes()).unwrap();
        assert_eq!(router.calls().last(), Some(&Call::Route(24, MsiMessage { data: 0x42, ..MESSAGE })));
    }

    #[test]
    fn wild_table_accesses_change_nothing() {
        let (mut msix, router) = table();
        msix.set_control(ENABLE).unwrap();
        for (offset, len) in [(1, 4), (4, 8), (32, 4), (u64::MAX - 7, 8), (0, 1), (0, 3)] {
            msix.write_table(offset, &[0xff; 8][..len]).unwrap();
            msix.read_table(offset, &mut [0; 8][..len]);
        }
        assert!(router.calls().is_empty());
    }

    /// One step of a driver, right or wrong.
    #[derive(Debug, Clone)]
    enum Step {
        Control(u16),
        Table { offset: u64, data: Vec<u8> },
    }

    fn step() -> impl Strategy<Value = Step> {
        let width = prop_oneof![Just(4usize), Just(8), Just(1), Just(3)];
        prop_oneof![
            any::<u16>().prop_map(Step::Control),
            (0u64..10, 0u64..4, width, any::<[u8; 8]>()).prop_map(|(word, skew, width, data)| Step::Table {
                offset: word * 4 + skew / 3,
                data: data[..width].to_vec()
            }),
        ]
    }

    /// What KVM would deliver after these calls: the message of each attached GSI.
    fn delivered(calls: &[Call]) -> Vec<(Gsi, MsiMessage)> {
        let (mut routes, mut attached) = (std::collections::BTreeMap::new(), std::collections::BTreeSet::new());
        for call in calls {
            match *call {
                Call::Allocate => {}
                Call::Route(gsi, message) => {
                    routes.insert(gsi, message);
                }
                Call::Attach(gsi) => assert!(attached.insert(gsi), "attached twice"),
                Call::Detach(gsi) => assert!(attached.remove(&gsi), "detached without need"),
            }
        }
        attached.into_iter().map(|gsi| (gsi, routes[&gsi])).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// After any sequence of writes KVM delivers exactly the vectors that the registers show as open, with the
        /// messages that they show.
        #[test]
        fn kvm_always_delivers_what_the_registers_say(steps in proptest::collection::vec(step(), 0..40)) {
            let (mut msix, router) = table();
            for step in steps {
                match step {
                    Step::Control(control) => msix.set_control(control).unwrap(),
                    Step::Table { offset, data } => msix.write_table(offset, &data).unwrap(),
                }
                let mut shown = Vec::new();
                for entry in 0..2 {
                    let word = |at: u64| {
                        let mut word = [0; 4];
                        msix.read_table(entry * ENTRY + at, &mut word);
                        u32::from_le_bytes(word)
                    };
                    prop_assert_eq!((word(0) & 3, word(12) & !1), (0, 0), "bits that do not exist");
                    if word(12) == 0 && msix.control == ENABLE {
                        shown.push(MsiMessage { address: u64::from(word(4)) << 32 | u64::from(word(0)), data: word(8) });
                    }
                }
                let mut live: Vec<_> = delivered(&router.calls()).into_iter().map(|(_, message)| message).collect();
                let key = |message: &MsiMessage| (message.address, message.data);
                live.sort_by_key(key);
                shown.sort_by_key(key);
                prop_assert_eq!(live, shown);
            }
        }

        #[test]
        fn a_wide_read_is_its_bytes(offset in 0u64..40, width in 1usize..9) {
            let (mut msix, _) = table();
            program(&mut msix);
            let mut whole = vec![0; width];
            msix.read_table(offset, &mut whole);
            let end = ENTRY - offset % ENTRY;
            for (n, byte) in whole.iter().enumerate() {
                let mut single = [0];
                msix.read_table(offset + n as u64, &mut single);
                // Accesses do not run into the next entry.
                prop_assert_eq!(*byte, if (n as u64) < end { single[0] } else { 0 });
            }
        }
    }
}
