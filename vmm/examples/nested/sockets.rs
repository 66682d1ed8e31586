//! vsock sockets, and a line-by-line conversation between host and guest over one.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use crate::support::check;

/// The host's context id.
pub const HOST: u32 = libc::VMADDR_CID_HOST;
/// Each read and write, and each connect.
const PATIENCE: Duration = Duration::from_secs(30);

/// `SOCK_STREAM` or `SOCK_SEQPACKET`.
pub fn connect(kind: libc::c_int, cid: u32, port: u32) -> io::Result<File> {
    let socket = socket(kind)?;
    let address = address(cid, port);
    // SAFETY: the address is initialised and its length is right.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), LEN) })?;
    Ok(File::from(socket))
}

pub fn listen(kind: libc::c_int, port: u32) -> io::Result<OwnedFd> {
    let socket = socket(kind)?;
    let address = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: as above.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LEN) })?;
    // SAFETY: numbers only.
    check(unsafe { libc::listen(socket.as_raw_fd(), 8) })?;
    Ok(socket)
}

/// The next connection; waits as long as it takes.
pub fn accept(listener: &OwnedFd) -> io::Result<File> {
    loop {
        // SAFETY: the peer's address is not wanted.
        let fd = unsafe { libc::accept(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut()) };
        if fd >= 0 {
            // SAFETY: a fresh descriptor, owned by nobody else.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            set_patience(&socket)?;
            return Ok(File::from(socket));
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EAGAIN) {
            return Err(error);
        }
    }
}

const LEN: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all zeros is a valid address structure.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

fn socket(kind: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, kind | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: a fresh descriptor, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set_patience(&socket)?;
    Ok(socket)
}

fn set_patience(socket: &OwnedFd) -> io::Result<()> {
    let time = libc::timeval { tv_sec: PATIENCE.as_secs() as i64, tv_usec: 0 };
    for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        let len = size_of::<libc::timeval>() as libc::socklen_t;
        // SAFETY: the kernel reads one timeval.
        check(unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const time).cast(), len)
        })?;
    }
    Ok(())
}

/// One end of a conversation in lines.
pub struct Talk(BufReader<File>);

impl Talk {
    pub fn new(stream: File) -> Self {
        Self(BufReader::new(stream))
    }

    pub fn say(&mut self, line: &str) -> io::Result<()> {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes())
    }

    /// The other end's next line; an error when it has hung up.
    pub fn hear(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_string()),
        }
    }

    pub fn ask(&mut self, line: &str) -> io::Result<String> {
        self.say(line)?;
        self.hear()
    }

    /// The stream itself, for bytes that are no lines.
    pub fn stream(&mut self) -> &mut BufReader<File> {
        &mut self.0
    }
}

/// How a side answers a line.
pub type Answer = fn(&str, &mut Talk) -> io::Result<String>;

/// Answers every conversation on `port` by `answer`, each in its own thread; the socket listens when this returns.
pub fn serve(port: u32, answer: Answer) -> io::Result<()> {
    let listener = listen(libc::SOCK_STREAM, port)?;
    std::thread::spawn(move || {
        while let Ok(stream) = accept(&listener) {
            std::thread::spawn(move || converse(Talk::new(stream), answer));
        }
    });
    Ok(())
}

fn converse(mut talk: Talk, answer: Answer) {
    loop {
        match talk.hear() {
            Ok(line) => {
                let reply = answer(&line, &mut talk).unwrap_or_else(|e| format!("FAILED {e}"));
                if talk.say(&reply).is_err() {
                    return;
                }
            }
            // Idle for longer than a single read waits.
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(_) => return,
        }
    }
}

/// Bytes that differ at every position of a transfer, and the sum that both ends compare (FNV-1a).
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 ^ seed ^ n >> 13) as u8).collect()
}

pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
