//! The kernel's ring buffer.

/// `SYSLOG_ACTION_READ_ALL` of syslog(2): reads the newest bytes without taking them away.
const READ_ALL: libc::c_int = 3;

/// The newest `max_bytes` at most, beginning with a whole line.
pub fn tail(max_bytes: usize) -> String {
    let mut buffer = vec![0u8; max_bytes];
    let room = libc::c_int::try_from(buffer.len()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the kernel writes at most `room` bytes into the buffer, which has that many.
    let length = unsafe { libc::klogctl(READ_ALL, buffer.as_mut_ptr().cast(), room) };
    buffer.truncate(usize::try_from(length).unwrap_or(0));
    let text = String::from_utf8_lossy(&buffer);
    match text.find('\n') {
        // Only a full buffer begins in the middle of a line.
        Some(at) if buffer.len() == max_bytes => text[at + 1..].to_owned(),
        _ => text.into_owned(),
    }
}
