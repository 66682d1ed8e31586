//! A device's configuration space (virtio 1.3 §2.5): drivers read and write it on vCPU threads, its device changes it.
//!
//! Most devices make theirs once (`vec![..].into()`). One with fields that a driver writes says which bytes those are
//! ([`DeviceConfig::changing`]) and reads them when it wants to know, or is told of each write ([`DeviceConfig::acting`]);
//! it changes its own with [`DeviceConfig::update`].
#![forbid(unsafe_code)]

use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device that acts as soon as a driver writes, whether or not it is activated.
pub trait OnWrite: Debug + Send + Sync {
    /// A driver has written `data` at `offset`: any bytes, at any place. Called on a vCPU thread; must not block.
    fn written(&self, offset: u64, data: &[u8]);
}

/// A handle; clones share the space.
#[derive(Debug, Clone)]
pub struct DeviceConfig(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    fields: Mutex<Fields>,
    writable: Vec<Range<usize>>,
    on_write: Option<Box<dyn OnWrite>>,
}

#[derive(Debug)]
struct Fields {
    bytes: Vec<u8>,
    generation: u8,
}

impl From<Vec<u8>> for DeviceConfig {
    /// A space that drivers cannot write.
    fn from(bytes: Vec<u8>) -> Self {
        Self::changing(bytes, Vec::new())
    }
}

impl DeviceConfig {
    /// A space of which drivers may write the `writable` bytes.
    pub fn changing(bytes: Vec<u8>, writable: Vec<Range<usize>>) -> Self {
        Self::with(bytes, writable, None)
    }

    /// A space whose bytes drivers cannot change; `on_write` hears of each write.
    pub fn acting(bytes: Vec<u8>, on_write: Box<dyn OnWrite>) -> Self {
        Self::with(bytes, Vec::new(), Some(on_write))
    }

    fn with(bytes: Vec<u8>, writable: Vec<Range<usize>>, on_write: Option<Box<dyn OnWrite>>) -> Self {
        Self(Arc::new(Shared { fields: Mutex::new(Fields { bytes, generation: 0 }), writable, on_write }))
    }

    fn fields(&self) -> MutexGuard<'_, Fields> {
        self.0.fields.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.fields().bytes.len()
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of it.
    pub fn to_vec(&self) -> Vec<u8> {
        self.fields().bytes.clone()
    }

    /// A driver reads at `offset`; zeros past the end.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let fields = self.fields();
        for (n, byte) in data.iter_mut().enumerate() {
            *byte = place(offset, n).and_then(|at| fields.bytes.get(at)).copied().unwrap_or(0);
        }
    }

    /// A driver writes at `offset`. Bytes that are not its to write stay (§2.5.1 leaves the effect to the device).
    pub fn write(&self, offset: u64, data: &[u8]) {
        let mut fields = self.fields();
        for (n, byte) in data.iter().enumerate() {
            let Some(at) = place(offset, n) else { continue };
            let allowed = self.0.writable.iter().any(|range| range.contains(&at));
            if let Some(slot) = fields.bytes.get_mut(at).filter(|_| allowed) {
                *slot = *byte;
            }
        }
        drop(fields);
        if let Some(on_write) = &self.0.on_write {
            on_write.written(offset, data);
        }
    }

    /// §2.5.3: a driver that reads the same value before and after its fields has read them of one state.
    pub fn generation(&self) -> u8 {
        self.fields().generation
    }

    /// The device changes bytes from `offset` on; `true` when they are other than before, so that the driver must be
    /// interrupted.
    pub fn update(&self, offset: usize, data: &[u8]) -> bool {
        let mut fields = self.fields();
        let Some(slot) = fields.bytes.get_mut(offset..offset.saturating_add(data.len())) else {
            return false;
        };
        if slot == data {
            return false;
        }
        slot.copy_from_slice(data);
        fields.generation = fields.generation.wrapping_add(1);
        true
    }

    /// The little-endian field at `offset`; 0 past the end.
    pub fn le32(&self, offset: u64) -> u32 {
        let mut field = [0; 4];
        self.read(offset, &mut field);
        u32::from_le_bytes(field)
    }
}

/// Index of the `n`th byte from `offset` on, when there can be one.
fn place(offset: u64, n: usize) -> Option<usize> {
    usize::try_from(offset).ok()?.checked_add(n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn driver_changes_only_its_bytes() {
        let config = DeviceConfig::changing(vec![1; 8], vec![4..6, 7..8]);
        config.write(0, &[9; 4]);
        config.write(3, &[9; 4]);
        let mut all = [0; 10];
        config.read(0, &mut all);
        assert_eq!(all, [1, 1, 1, 1, 9, 9, 1, 1, 0, 0]);
        assert_eq!(config.generation(), 0, "the generation counts the device's changes");
    }

    #[test]
    fn device_changes_count_only_when_they_change() {
        let config = DeviceConfig::from(vec![0; 4]);
        assert!(!config.update(0, &[0; 4]) && !config.update(2, &[1; 4]));
        assert!(config.update(0, &7u32.to_le_bytes()));
        assert_eq!((config.le32(0), config.le32(4), config.generation()), (7, 0, 1));
        config.write(0, &[1]);
        assert_eq!(config.le32(0), 7, "nothing is the driver's");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn any_offset_is_safe(offset: u64, data in proptest::collection::vec(any::<u8>(), 0..20)) {
            let config = DeviceConfig::changing(vec![0; 16], vec![4..8, 12..16]);
            config.write(offset, &data);
            let mut back = vec![0; data.len()];
            config.read(offset, &mut back);
            for (n, byte) in back.iter().enumerate() {
                let at = offset.checked_add(n as u64).map_or(99, |at| at.min(99));
                let mine = (4..8).contains(&at) || (12..16).contains(&at);
                prop_assert_eq!(*byte, if mine { data[n] } else { 0 });
            }
        }
    }
}
