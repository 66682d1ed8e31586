//! Which host CPUs a vCPU's thread may run on.

use std::io;

/// Host CPUs that the kernel interface used here can name: numbers below this.
pub const MAX_HOST_CPUS: usize = libc::CPU_SETSIZE as usize;

/// Host CPUs that this process may use: those that are online and in its cpuset.
///
/// # Errors
/// When the kernel refuses.
pub fn allowed() -> io::Result<Vec<usize>> {
    // SAFETY: all zeros is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: writes at most the size of the set.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: reads a bit of the set; the number is below its size.
    Ok((0..MAX_HOST_CPUS).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect())
}

/// Ties the calling thread to `cpus`. Numbers from [`MAX_HOST_CPUS`] on are ignored.
///
/// # Errors
/// When none of them is online and in this process's cpuset.
pub fn pin(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: all zeros is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in cpus.iter().filter(|cpu| **cpu < MAX_HOST_CPUS) {
        // SAFETY: sets a bit of the set; the number is below its size.
        unsafe { libc::CPU_SET(*cpu, &mut set) };
    }
    // SAFETY: reads the set.
    if unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// CPU numbers as text: `0-3,7`.
pub fn ranges(cpus: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for cpu in cpus {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            _ => parts.push((*cpu, *cpu)),
        }
    }
    let text = |(first, last): &(usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    parts.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_is_tied_to_the_cpus_it_was_given() {
        let all = allowed().unwrap();
        let one = *all.last().unwrap();
        std::thread::spawn(move || {
            pin(&[one]).unwrap();
            assert_eq!(allowed().unwrap(), [one]);
            assert!(pin(&[]).is_err());
            assert!(pin(&[MAX_HOST_CPUS + 1]).is_err());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn cpu_numbers_read_as_ranges() {
        for (cpus, text) in [(&[][..], ""), (&[3], "3"), (&[0, 1, 2, 5, 7, 8], "0-2,5,7-8")] {
            assert_eq!(ranges(cpus), text);
        }
    }
}
