//! DNS over TCP (RFC 7766): a few clients, one query at a time for each, forwarded over a pool of sockets.

use crate::dns::message::{Code, Query, is_reply_to};
use crate::dns::names::Names;
use crate::sys::{self, Interest};
use holdfast_model::contract::network::Counters;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

const MAX_CLIENTS: usize = 16;
/// A client that is slower, or idle for longer, is cut off.
const IDLE: Duration = Duration::from_secs(10);
/// Wait for an upstream server.
const TRY: Duration = Duration::from_secs(4);

/// A message with its two bytes of length, coming or going.
#[derive(Debug, Default)]
struct Frame {
    bytes: Vec<u8>,
    done: usize,
}

impl Frame {
    fn to_send(message: &[u8]) -> Self {
        let mut bytes = (message.len() as u16).to_be_bytes().to_vec();
        bytes.extend_from_slice(message);
        Self { bytes, done: 0 }
    }

    /// Reads on; the message once it is whole.
    fn read(&mut self, from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
        loop {
            let want = match self.bytes.get(..2) {
                Some(len) => 2 + usize::from(u16::from_be_bytes([len[0], len[1]])),
                None => 2,
            };
            if want > 2 && self.bytes.len() == want {
                return Ok(Some(self.bytes.split_off(2)));
            }
            if want == 2 && self.bytes.len() == 2 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut buffer = [0; 2048];
            let room = (want - self.bytes.len()).min(buffer.len());
            match from.read(&mut buffer[..room]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.bytes.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) => return Err(e),
            }
        }
    }

    /// Writes on; true once all is written.
    fn write(&mut self, to: &mut impl Write) -> io::Result<bool> {
        while self.done < self.bytes.len() {
            match to.write(&self.bytes[self.done..]) {
                Ok(n) => self.done += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                // Still connecting.
                Err(e) if e.kind() == io::ErrorKind::NotConnected => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }
}

#[derive(Debug)]
enum Phase {
    Reading(Frame),
    /// Waiting for a free upstream socket or for its answer.
    Asking {
        query: Query,
        raw: Vec<u8>,
    },
    Writing(Frame),
}

struct Client {
    stream: TcpStream,
    phase: Phase,
    deadline: Instant,
    /// Tells a client from a later one in the same place.
    serial: u64,
}

struct Upstream {
    stream: TcpStream,
    /// Client's serial, the query, what goes out, what comes in.
    job: Option<Job>,
}

struct Job {
    serial: u64,
    raw: Vec<u8>,
    out: Frame,
    sent: bool,
    input: Frame,
    deadline: Instant,
}

pub(super) struct Tcp {
    listener: TcpListener,
    clients: Vec<Client>,
    upstream: Vec<Upstream>,
    serial: u64,
}

impl Tcp {
    pub(super) fn new(listener: TcpListener, upstream: Vec<OwnedFd>) -> Self {
        let upstream = upstream.into_iter().map(|fd| Upstream { stream: fd.into(), job: None });
        Self { listener, clients: Vec::new(), upstream: upstream.collect(), serial: 0 }
    }

    pub(super) fn interests(&self) -> Vec<Interest> {
        let mut all = Vec::new();
        if self.clients.len() < MAX_CLIENTS {
            all.push(Interest { fd: self.listener.as_raw_fd(), write: false });
        }
        for c in &self.clients {
            match c.phase {
                Phase::Asking { .. } => {}
                Phase::Reading(_) | Phase::Writing(_) => {
                    all.push(Interest { fd: c.stream.as_raw_fd(), write: matches!(c.phase, Phase::Writing(_)) })
                }
            }
        }
        for u in &self.upstream {
            if let Some(job) = &u.job {
                all.push(Interest { fd: u.stream.as_raw_fd(), write: !job.sent });
            }
        }
        all
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let clients = self.clients.iter().map(|c| c.deadline);
        let jobs = self.upstream.iter().filter_map(|u| u.job.as_ref().map(|j| j.deadline));
        clients.chain(jobs).min()
    }

    pub(super) fn turn(&mut self, names: &Names, server: Option<SocketAddr>, counters: &mut Counters) {
        let now = Instant::now();
        while self.clients.len() < MAX_CLIENTS {
            // Not by the standard library: it would need one more system call to make it non-blocking.
            let Ok(stream) = sys::accept(&self.listener) else {
                break;
            };
            self.serial += 1;
            self.clients.push(Client {
                stream: stream.into(),
                phase: Phase::Reading(Frame::default()),
                deadline: now + IDLE,
                serial: self.serial,
            });
        }
        self.advance_upstream(now, counters);
        let clients = std::mem::take(&mut self.clients);
        for mut client in clients {
            if client.deadline > now && self.advance_client(&mut client, now, names, server, counters).is_ok() {
                self.clients.push(client);
            }
        }
    }

    fn advance_client(
        &mut self,
        c: &mut Client,
        now: Instant,
        names: &Names,
        server: Option<SocketAddr>,
        counters: &mut Counters,
    ) -> io::Result<()> {
        loop {
            match &mut c.phase {
                Phase::Reading(frame) => {
                    let Some(raw) = frame.read(&mut c.stream)? else {
                        return Ok(());
                    };
                    let query = Query::parse(&raw).map_err(|_| {
                        counters.dns_malformed += 1;
                        io::Error::from(io::ErrorKind::InvalidData)
                    })?;
                    c.phase = if let Some(bytes) = names.answer(&query) {
                        counters.dns_local += 1;
                        Phase::Writing(Frame::to_send(&bytes))
                    } else if self.start_job(c.serial, &raw, server, now) {
                        Phase::Asking { query, raw }
                    } else {
                        counters.dns_failed += 1;
                        Phase::Writing(Frame::to_send(&query.reply(Code::ServerFailure, &[])))
                    };
                    c.deadline = now + IDLE;
                }
                Phase::Asking { query, raw } => {
                    let job = |u: &&mut Upstream| u.job.as_ref().is_some_and(|j| j.serial == c.serial);
                    let bytes = match self.upstream.iter_mut().find(job) {
                        Some(u) => {
                            let whole = u
                                .job
                                .as_mut()
                                .and_then(|j| (j.input.done == 1).then(|| std::mem::take(&mut j.input.bytes)));
                            let Some(bytes) = whole else { return Ok(()) };
                            u.job = None;
                            let _ = sys::disconnect(&u.stream);
                            bytes
                        }
                        None => Vec::new(),
                    };
                    let reply = if is_reply_to(&bytes, raw) {
                        counters.dns_forwarded += 1;
                        bytes
                    } else {
                        counters.dns_failed += 1;
                        query.reply(Code::ServerFailure, &[])
                    };
                    c.phase = Phase::Writing(Frame::to_send(&reply));
                }
                Phase::Writing(frame) => {
                    if !frame.write(&mut c.stream)? {
                        return Ok(());
                    }
                    c.phase = Phase::Reading(Frame::default());
                    c.deadline = now + IDLE;
                }
            }
        }
    }

    fn start_job(&mut self, serial: u64, raw: &[u8], server: Option<SocketAddr>, now: Instant) -> bool {
        let (Some(server), Some(u)) = (server, self.upstream.iter_mut().find(|u| u.job.is_none())) else {
            return false;
        };
        if sys::reconnect(&u.stream, server).is_err() {
            return false;
        }
        u.job = Some(Job {
            serial,
            raw: raw.to_vec(),
            out: Frame::to_send(raw),
            sent: false,
            input: Frame::default(),
            deadline: now + TRY,
        });
        true
    }

    fn advance_upstream(&mut self, now: Instant, counters: &mut Counters) {
        for u in &mut self.upstream {
            let Some(job) = &mut u.job else { continue };
            let alive = self.clients.iter().any(|c| c.serial == job.serial);
            let mut step = || -> io::Result<()> {
                if !job.sent {
                    job.sent = job.out.write(&mut u.stream)?;
                }
                if job.sent
                    && job.input.done == 0
                    && let Some(answer) = job.input.read(&mut u.stream)?
                {
                    // Whole: kept for the client, which looks for it in this turn.
                    job.input = Frame { bytes: answer, done: 1 };
                }
                Ok(())
            };
            let failed = step().is_err();
            if failed || !alive || job.deadline <= now {
                if alive {
                    eprintln!("dns over tcp: no answer from upstream ({} bytes asked)", job.raw.len());
                    counters.dns_failed += 1;
                }
                u.job = None;
                let _ = sys::disconnect(&u.stream);
            }
        }
    }
}
