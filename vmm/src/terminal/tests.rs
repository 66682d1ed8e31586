use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;

use super::*;

fn pipe() -> (File, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: the array has room for both descriptors.
    assert_eq!(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    // SAFETY: fresh descriptors, owned by nobody else.
    unsafe { (File::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) }
}

/// A client of `terminal`, its place, and how much history it gets.
fn attach(terminal: &Terminal, replay: bool) -> (UnixStream, usize, u64) {
    let attachment = terminal.attach(replay).unwrap();
    (UnixStream::from(attachment.client), attachment.watch.1, attachment.replayed)
}

/// All that can be read from a non-blocking stream now.
fn drain(stream: &mut UnixStream) -> Vec<u8> {
    let (mut out, mut buf) = (Vec::new(), [0u8; 4096]);
    while let Ok(got @ 1..) = stream.read(&mut buf) {
        out.extend_from_slice(&buf[..got]);
    }
    out
}

fn take(terminal: &Terminal) -> Vec<u8> {
    let mut buf = [0u8; 64];
    let got = terminal.take(&mut buf);
    buf[..got].to_vec()
}

#[test]
fn stalled_reader_never_blocks_and_learns_of_the_loss() {
    let (mut reader, writer) = pipe();
    let terminal = Terminal::new("t", Some(writer), None);
    for _ in 0..300 {
        terminal.put(&[b'x'; 1000]);
    }
    let count = |seen: &[u8]| seen.iter().filter(|b| **b == b'x').count() as u64;
    let (mut seen, mut buf) = (Vec::new(), vec![0; 1 << 20]);
    while count(&seen) + terminal.stats().lost_bytes < 300_000 {
        let got = reader.read(&mut buf).unwrap();
        seen.extend_from_slice(&buf[..got]);
        terminal.ready(OUTPUT);
    }
    let lost = terminal.stats().lost_bytes;
    let note = format!("[{lost} bytes of output lost]");
    assert!(lost > 0 && String::from_utf8_lossy(&seen).contains(&note), "{lost} lost");
}

#[test]
fn vanished_main_reader_is_not_the_guests_problem() {
    let (reader, writer) = pipe();
    let terminal = Terminal::new("t", Some(writer), None);
    drop(reader);
    // Rust programs ignore SIGPIPE.
    terminal.put(b"hello");
    terminal.put(b"again");
    let (mut client, ..) = attach(&terminal, true);
    assert_eq!(drain(&mut client), b"helloagain");
}

#[test]
fn late_client_sees_history_then_what_follows() {
    let terminal = Terminal::new("t", None, None);
    terminal.put(b"earlier ");
    let (mut with, _, replayed) = attach(&terminal, true);
    let (mut without, ..) = attach(&terminal, false);
    terminal.put(b"later");
    assert_eq!(replayed, 8);
    assert_eq!(drain(&mut with), b"earlier later");
    assert_eq!(drain(&mut without), b"later");
}

#[test]
fn history_is_the_last_64_kib() {
    let terminal = Terminal::new("t", None, None);
    terminal.put(b"gone");
    terminal.put(&vec![b'k'; KEPT]);
    let (mut client, place, replayed) = attach(&terminal, true);
    assert_eq!(replayed, KEPT as u64);
    let mut seen = Vec::new();
    while seen.len() < KEPT {
        seen.extend(drain(&mut client));
        terminal.ready(place);
    }
    assert!(seen.len() == KEPT && seen.iter().all(|b| *b == b'k'));
}

#[test]
fn slow_client_costs_nobody_else_anything() {
    let (mut reader, writer) = pipe();
    let terminal = Terminal::new("t", Some(writer), None);
    let (_slow, ..) = attach(&terminal, true);
    let mut buf = vec![0u8; 2000];
    for n in 0..1000u32 {
        let line = [n as u8; 2000];
        terminal.put(&line);
        reader.read_exact(&mut buf).unwrap();
        assert_eq!(buf, line);
    }
    assert_eq!(terminal.stats().lost_bytes, 0);
}

#[test]
fn input_of_all_reaches_the_guest_and_none_starves() {
    let (host, ours) = UnixStream::pair().unwrap();
    let terminal = Terminal::new("t", None, Some(ours.into()));
    let (mut one, first, _) = attach(&terminal, false);
    let (mut two, second, _) = attach(&terminal, false);
    (&host).write_all(&[b'm'; 1000]).unwrap();
    one.write_all(b"1").unwrap();
    two.write_all(b"2").unwrap();
    assert!(terminal.ready(INPUT) && terminal.ready(first) && terminal.ready(second));
    let mut seen = [take(&terminal), take(&terminal), take(&terminal)];
    seen.sort();
    assert_eq!(seen[..2], [b"1".to_vec(), b"2".to_vec()]);
    assert!(seen[2].iter().all(|b| *b == b'm'));
    while !take(&terminal).is_empty() {}
    assert_eq!(terminal.stats().in_bytes, 1002);
    assert!(!terminal.ready(first), "nothing new");
}

#[test]
fn input_ends_with_its_file_and_the_rest_goes_on() {
    let (reader, writer) = pipe();
    let terminal = Terminal::new("t", None, Some(reader.into()));
    File::from(writer).write_all(b"last").unwrap();
    assert_eq!(take(&terminal), b"last");
    assert_eq!(take(&terminal), b"");
    let (mut client, place, _) = attach(&terminal, false);
    client.write_all(b"more").unwrap();
    assert!(terminal.ready(place));
    assert_eq!(take(&terminal), b"more");
}

#[test]
fn client_that_closes_leaves_its_place_even_if_the_guest_reads_nothing() {
    let terminal = Terminal::new("t", None, None);
    for _ in 0..3 * MAX_ATTACHED {
        let (client, place, _) = attach(&terminal, true);
        assert_eq!(terminal.stats().attached, 1);
        drop(client);
        terminal.ready(place);
        assert!(terminal.inner.lock().unwrap().peers[place].is_none());
    }
}

#[test]
fn last_words_of_a_client_that_closed_are_read() {
    let terminal = Terminal::new("t", None, None);
    let (mut client, place, _) = attach(&terminal, true);
    client.write_all(b"reboot\n").unwrap();
    drop(client);
    assert!(terminal.ready(place));
    assert_eq!(terminal.stats().attached, 0);
    assert_eq!(take(&terminal), b"reboot\n");
    assert_eq!(take(&terminal), b"");
    assert!(terminal.inner.lock().unwrap().peers[place].is_none());
}

#[test]
fn client_that_only_ends_its_input_still_sees_output() {
    let terminal = Terminal::new("t", None, None);
    let (mut client, place, _) = attach(&terminal, true);
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(terminal.ready(place));
    assert_eq!(take(&terminal), b"");
    terminal.put(b"still here");
    assert_eq!(drain(&mut client), b"still here");
}

#[test]
fn one_client_too_many_is_refused_until_another_hangs_up() {
    let terminal = Terminal::new("hvc", None, None);
    let mut clients: Vec<_> = (0..MAX_ATTACHED).map(|_| attach(&terminal, true)).collect();
    let reason = terminal.attach(true).unwrap_err();
    assert!(reason.contains("console hvc") && reason.contains("detach"), "{reason}");
    let (mut client, place, _) = clients.remove(0);
    // Unread input keeps it from leaving at once, not from making room.
    client.write_all(b"x").unwrap();
    drop(client);
    terminal.ready(place);
    assert!(terminal.attach(true).is_ok());
}

#[test]
fn size_changes_only_when_the_guest_can_be_told() {
    let terminal = Terminal::new("t", None, None);
    let size = WindowSize { columns: 132, rows: 50 };
    assert!(!terminal.resize(size));
    assert_eq!(terminal.size(), WindowSize::default());
    terminal.set_follows_size(true);
    assert!(terminal.resize(size));
    assert_eq!(terminal.size(), size);
}

#[test]
fn sources_are_the_main_ends_with_their_places() {
    let (_reader, writer) = pipe();
    let fd = writer.as_raw_fd();
    assert_eq!(Terminal::new("t", Some(writer), None).sources(), [(fd, OUTPUT)]);
    assert!(!Terminal::new("t", None, None).ready(99), "a place that is not there");
}
