//! The one owner of the TPM: a thread that runs one operation after the other.
//!
//! Callers hand in closures and wait with a deadline. A TPM that asks to be asked again (RETRY, TESTING,
//! NV_RATE, YIELDED) is asked again with growing pauses until the deadline; a link that broke is opened anew
//! for the next operation. Operations whose caller has given up are not started.
//!
//! Reading order: [`Tpm`], [`templates`] (what each key is), [`keys`] (persistent keys), [`pcr`],
//! [`quote`], [`epoch`] (the NV index of security epochs), [`certificate`] (the device certificate in NV memory), [`policy`]
//! (what the release signed), [`seal`], `esys` (the foreign functions).

pub mod certificate;
pub mod epoch;
pub(crate) mod esys;
pub mod keys;
pub mod pcr;
pub mod policy;
pub mod quote;
pub mod seal;
pub mod templates;

use std::collections::HashMap;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use tss_esapi::constants::response_code::Tss2ResponseCodeKind as Kind;
use tss_esapi::constants::{CapabilityType, PropertyTag};
use tss_esapi::handles::{KeyHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::structures::CapabilityData;
use tss_esapi::{Context, TctiNameConf};

use esys::Esys;

/// How long an ordinary operation (sign, quote, read, extend) may take, its time in the queue included.
pub const OPERATION_LIMIT: Duration = Duration::from_secs(15);
/// How long making keys may take: a discrete TPM needs seconds for each.
pub const KEY_CREATION_LIMIT: Duration = Duration::from_secs(90);
/// Operations that may wait; one more is refused at once.
const QUEUE_BOUND: usize = 32;
/// First pause before asking a busy TPM again; doubled each time up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE: Duration = Duration::from_millis(20);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(640);

/// The resource manager of the kernel: the TCTI of every real device.
pub const DEVICE_TCTI: &str = "device:/dev/tpmrm0";

/// A TPM operation that failed. Every text names the operation.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TpmError {
    /// The link to the TPM cannot be opened.
    #[error("TPM: cannot open {tcti}: {reason}")]
    Open {
        /// TCTI string.
        tcti: String,
        /// Reason given by the TSS.
        reason: String,
    },
    /// The TPM or the TSS refused a command.
    #[error("TPM: {operation}: {reason}")]
    Refused {
        /// What was asked.
        operation: String,
        /// The response in words.
        reason: String,
        /// What kind of response.
        kind: Response,
    },
    /// No answer in time. The operation may still complete.
    #[error("TPM: {operation}: no answer within {limit:?}")]
    Deadline {
        /// What was asked.
        operation: &'static str,
        /// The limit that passed.
        limit: Duration,
    },
    /// Too many operations wait already.
    #[error("TPM: {operation}: {QUEUE_BOUND} operations wait already; try again later")]
    Busy {
        /// What was asked.
        operation: &'static str,
    },
    /// The TPM holds or answers something else than it must.
    #[error("TPM: {object}: expected {expected}, found {found}")]
    Unexpected {
        /// Handle, PCR or field.
        object: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Sealing would bind to nothing, or the image carries no policy to seal to.
    #[error("TPM: the vault key is not sealed: {0}")]
    NotSealable(String),
    /// The sealed key stays closed for this boot.
    #[error("TPM: the vault key stays sealed: {reason}")]
    StaysSealed {
        /// What is not as it must be.
        condition: Condition,
        /// In words.
        reason: String,
    },
}

/// The condition that keeps a sealed key closed; it decides what may bring the key back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// This boot is not one that the key was sealed to: another image, another policy key, other PCRs. The key may come from
    /// escrow, if the controller believes what this boot attests.
    Boot,
    /// A higher security epoch is committed: this image is not to have the key, in no way.
    Epoch,
    /// The phase `vault-open` is past: the next boot opens it.
    Phase,
}

/// What a response means to a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Response {
    /// The TPM is busy; the same command may succeed later.
    Busy,
    /// The link to the TPM is broken.
    Link,
    /// A policy is not satisfied.
    Policy,
    /// The dictionary attack lockout is on.
    Lockout,
    /// Anything else.
    Other,
}

/// Names the operation in a TSS error.
pub(crate) trait Refusal<T> {
    fn during(self, operation: impl Into<String>) -> Result<T, TpmError>;
}

impl<T> Refusal<T> for tss_esapi::Result<T> {
    fn during(self, operation: impl Into<String>) -> Result<T, TpmError> {
        self.map_err(|e| TpmError::Refused { operation: operation.into(), reason: e.to_string(), kind: classify(e) })
    }
}

pub(crate) fn classify(e: tss_esapi::Error) -> Response {
    let tss_esapi::Error::Tss2Error(code) = e else {
        return Response::Other;
    };
    match code.kind() {
        Some(Kind::Retry | Kind::Testing | Kind::NvRate | Kind::Yielded | Kind::NvUnavailable) => Response::Busy,
        Some(Kind::Lockout) => Response::Lockout,
        Some(Kind::PolicyFail | Kind::Policy | Kind::PolicyCc | Kind::PcrChanged) => Response::Policy,
        Some(_) => Response::Other,
        // Not from the TPM: from a layer of the TSS, of which only the transport breaks by itself.
        None => Response::Link,
    }
}

/// What the TPM says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TpmInfo {
    /// Four letters, such as `IFX`, `AMD` or `IBM`.
    pub manufacturer: String,
    /// Firmware version, two 32 bit halves as the TPM gives them.
    pub firmware: (u32, u32),
}

/// Handle of the owner thread. Clones share it; the thread ends with the last one.
#[derive(Clone)]
pub struct Tpm {
    queue: SyncSender<Job>,
    info: TpmInfo,
}

struct Job {
    run: Box<dyn FnOnce(&mut Link) + Send>,
    abandoned: Arc<AtomicBool>,
}

impl Tpm {
    /// Starts the owner thread and asks the TPM who it is. `tcti` is a TSS TCTI string:
    /// [`DEVICE_TCTI`], or `swtpm:host=127.0.0.1,port=N` in tests.
    ///
    /// # Errors
    /// [`TpmError`] when there is no TPM behind `tcti` or it does not answer.
    pub fn start(tcti: &str) -> Result<Self, TpmError> {
        let open_error = |reason: String| TpmError::Open { tcti: tcti.to_owned(), reason };
        let conf = TctiNameConf::from_str(tcti).map_err(|e| open_error(e.to_string()))?;
        let (queue, jobs) = sync_channel(QUEUE_BOUND);
        let link = Link { tcti: tcti.to_owned(), conf, context: None, keys: HashMap::new() };
        std::thread::Builder::new()
            .name("tpm".into())
            .spawn(move || own(link, &jobs))
            .map_err(|e| open_error(e.to_string()))?;
        let mut tpm = Self { queue, info: TpmInfo::default() };
        tpm.info = tpm.call("read properties", OPERATION_LIMIT, read_info)?;
        Ok(tpm)
    }

    /// Who made it, which firmware it runs.
    pub fn info(&self) -> &TpmInfo {
        &self.info
    }

    /// Runs `operation` on the owner thread. It is run again while the TPM says it is busy, so it must be
    /// safe to repeat.
    pub(crate) fn call<T, F>(&self, operation: &'static str, limit: Duration, mut f: F) -> Result<T, TpmError>
    where
        T: Send + 'static,
        F: FnMut(&mut Link) -> Result<T, TpmError> + Send + 'static,
    {
        let deadline = Instant::now() + limit;
        let abandoned = Arc::new(AtomicBool::new(false));
        let (answer, wait) = sync_channel(1);
        let job = Job {
            run: Box::new(move |link| {
                // The caller may be gone: then nobody wants the result.
                let _ = answer.send(repeat_while_busy(link, deadline, &mut f));
            }),
            abandoned: Arc::clone(&abandoned),
        };
        self.queue.try_send(job).map_err(|e| match e {
            TrySendError::Full(_) => TpmError::Busy { operation },
            TrySendError::Disconnected(_) => {
                TpmError::Open { tcti: String::new(), reason: "the TPM thread has ended".into() }
            }
        })?;
        wait.recv_timeout(limit).unwrap_or_else(|e| {
            abandoned.store(true, Ordering::Relaxed);
            Err(match e {
                RecvTimeoutError::Timeout => TpmError::Deadline { operation, limit },
                RecvTimeoutError::Disconnected => TpmError::Refused {
                    operation: operation.into(),
                    reason: "the operation ended without an answer".into(),
                    kind: Response::Other,
                },
            })
        })
    }
}

fn own(mut link: Link, jobs: &Receiver<Job>) {
    while let Ok(job) = jobs.recv() {
        if !job.abandoned.load(Ordering::Relaxed) {
            (job.run)(&mut link);
        }
    }
}

fn repeat_while_busy<T>(
    link: &mut Link,
    deadline: Instant,
    f: &mut impl FnMut(&mut Link) -> Result<T, TpmError>,
) -> Result<T, TpmError> {
    let mut pause = RETRY_PAUSE;
    loop {
        match f(link) {
            Err(TpmError::Refused { kind: Response::Busy, .. }) if Instant::now() + pause < deadline => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(RETRY_PAUSE_MAX);
            }
            Err(e) => {
                if matches!(e, TpmError::Refused { kind: Response::Link, .. }) {
                    link.close();
                }
                return Err(e);
            }
            Ok(value) => return Ok(value),
        }
    }
}

/// The open TPM, on the owner thread only.
pub(crate) struct Link {
    tcti: String,
    conf: TctiNameConf,
    context: Option<Context>,
    /// Persistent keys already looked up in this context.
    keys: HashMap<u32, KeyHandle>,
}

impl Link {
    /// The typed context, opened when needed.
    pub(crate) fn context(&mut self) -> Result<&mut Context, TpmError> {
        if self.context.is_none() {
            let context = Context::new(self.conf.clone())
                .map_err(|e| TpmError::Open { tcti: self.tcti.clone(), reason: e.to_string() })?;
            self.context = Some(context);
        }
        Ok(self.context.as_mut().expect("opened just above"))
    }

    /// A context of the foreign functions, for what the typed one lacks. The typed context is closed first: an
    /// emulator serves one connection at a time.
    pub(crate) fn esys(&mut self) -> Result<Esys, TpmError> {
        self.close();
        Esys::open(&self.tcti)
    }

    /// A persistent key by handle; `None` when there is none.
    pub(crate) fn persistent(&mut self, handle: u32) -> Result<Option<KeyHandle>, TpmError> {
        if let Some(key) = self.keys.get(&handle) {
            return Ok(Some(*key));
        }
        let what = || format!("look up persistent handle {handle:#010x}");
        let tpm_handle = PersistentTpmHandle::new(handle).during(what())?;
        if !self.exists(handle)? {
            return Ok(None);
        }
        let found =
            self.context()?.execute_without_session(|c| c.tr_from_tpm_public(TpmHandle::Persistent(tpm_handle)));
        let key = KeyHandle::from(found.during(what())?);
        self.keys.insert(handle, key);
        Ok(Some(key))
    }

    /// Whether the TPM has this persistent handle or NV index. Asking the list first keeps the TSS from logging an error
    /// for what is an ordinary answer.
    pub(crate) fn exists(&mut self, handle: u32) -> Result<bool, TpmError> {
        let (listed, _more) = self
            .context()?
            .execute_without_session(|c| c.get_capability(CapabilityType::Handles, handle, 1))
            .during(format!("list handles from {handle:#010x}"))?;
        Ok(matches!(listed, CapabilityData::Handles(list) if list.as_ref().iter().any(|h| u32::from(*h) == handle)))
    }

    /// A persistent key that must be there.
    pub(crate) fn required(&mut self, handle: u32) -> Result<KeyHandle, TpmError> {
        self.persistent(handle)?.ok_or_else(|| TpmError::Unexpected {
            object: format!("persistent handle {handle:#010x}"),
            expected: "a key".into(),
            found: "nothing (was the TPM cleared?)".into(),
        })
    }

    fn close(&mut self) {
        self.keys.clear();
        self.context = None;
    }
}

fn read_info(link: &mut Link) -> Result<TpmInfo, TpmError> {
    let context = link.context()?;
    let mut property = |tag| context.get_tpm_property(tag).during("read properties").map(Option::unwrap_or_default);
    let manufacturer = property(PropertyTag::Manufacturer)?.to_be_bytes();
    let firmware = (property(PropertyTag::FirmwareVersion1)?, property(PropertyTag::FirmwareVersion2)?);
    let manufacturer: String = manufacturer.iter().filter(|b| b.is_ascii_graphic()).map(|b| char::from(*b)).collect();
    Ok(TpmInfo { manufacturer, firmware })
}
