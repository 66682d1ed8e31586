//! Memory of a frame, as the kernel takes it.

/// A piece of memory that frames are read into or written from: an `iovec` that the kernel accepts as it is.
///
/// It is usually guest memory, which the guest may change at any moment, so there is never a Rust reference to it; only
/// the kernel and [`Buffer::write`] touch it.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct Buffer(libc::iovec);

// SAFETY: a buffer is an address and a length; whoever makes one promises that the memory is there for as long as the
// buffer is used, on whatever thread.
#[allow(unsafe_code)]
unsafe impl Send for Buffer {}

impl Buffer {
    /// The `len` bytes at `start`.
    ///
    /// # Safety
    /// For as long as this value or a copy is used, the memory is mapped, readable and writable, and no Rust reference to
    /// it is alive.
    #[allow(unsafe_code)]
    pub unsafe fn new(start: *mut u8, len: usize) -> Self {
        Self(libc::iovec { iov_base: start.cast(), iov_len: len })
    }

    /// Bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "an empty piece is as good as any")]
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Cuts off the first `bytes`, at most all.
    pub fn advance(&mut self, bytes: usize) {
        let bytes = bytes.min(self.0.iov_len);
        self.0.iov_base = self.0.iov_base.cast::<u8>().wrapping_add(bytes).cast();
        self.0.iov_len -= bytes;
    }

    /// Copies the start of `data` here; the bytes that found room.
    pub fn write(&self, data: &[u8]) -> usize {
        let len = data.len().min(self.0.iov_len);
        // SAFETY: the memory is mapped and writable (promised to `new`), `len` is within both, and `data` is a Rust
        // reference, so it does not overlap.
        #[allow(unsafe_code)]
        unsafe {
            std::ptr::copy_nonoverlapping(data.as_ptr(), self.0.iov_base.cast(), len);
        }
        len
    }
}

/// Copies `data` into `buffers` from byte `skip` on; the bytes that found room.
pub fn write_at(buffers: &[Buffer], mut skip: usize, data: &[u8]) -> usize {
    let mut done = 0;
    for buffer in buffers {
        let mut rest = *buffer;
        let cut = skip.min(rest.len());
        rest.advance(cut);
        skip -= cut;
        done += rest.write(&data[done..]);
        if done == data.len() {
            break;
        }
    }
    done
}

/// Lets `act` see `buffers` from byte `skip` on, and puts them back as they were. `None` when they hold no more than that.
pub fn after<T>(buffers: &mut [Buffer], mut skip: usize, act: impl FnOnce(&mut [Buffer]) -> T) -> Option<T> {
    let first = buffers.iter().position(|buffer| {
        let here = skip < buffer.len();
        skip -= if here { 0 } else { buffer.len() };
        here
    })?;
    let saved = buffers[first];
    buffers[first].advance(skip);
    let result = act(&mut buffers[first..]);
    buffers[first] = saved;
    Some(result)
}

/// Bytes of all `buffers`.
#[must_use]
pub fn total(buffers: &[Buffer]) -> usize {
    buffers.iter().map(Buffer::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Buffers of these lengths, and the memory behind them.
    fn buffers(lens: &[usize]) -> (Vec<Buffer>, Vec<Vec<u8>>) {
        let mut memory: Vec<Vec<u8>> = lens.iter().map(|&len| vec![0; len]).collect();
        // SAFETY: the memory is returned beside the buffers and touched through them only until they are dropped.
        #[allow(unsafe_code)]
        let buffers = memory.iter_mut().map(|m| unsafe { Buffer::new(m.as_mut_ptr(), m.len()) }).collect();
        (buffers, memory)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn what_is_written_at_an_offset_is_found_there(
            lens in proptest::collection::vec(0usize..20, 0..8), skip in 0usize..100, len in 0usize..100,
        ) {
            let (list, memory) = buffers(&lens);
            let data: Vec<u8> = (1..=len).map(|n| n as u8).collect();
            let written = write_at(&list, skip, &data);
            let all: Vec<u8> = memory.concat();
            prop_assert_eq!(written, len.min(all.len().saturating_sub(skip)));
            for (at, byte) in all.iter().enumerate() {
                let expected = if at >= skip && at < skip + written { data[at - skip] } else { 0 };
                prop_assert_eq!(*byte, expected, "at {}", at);
            }
        }

        #[test]
        fn skipping_hides_exactly_that_much_and_is_undone(
            lens in proptest::collection::vec(0usize..20, 0..8), skip in 0usize..100,
        ) {
            let (mut list, _memory) = buffers(&lens);
            let all = total(&list);
            let rest = after(&mut list, skip, |rest| total(rest));
            prop_assert_eq!(rest, (skip < all).then(|| all - skip));
            prop_assert_eq!(total(&list), all);
        }
    }
}
