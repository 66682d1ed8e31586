//! The download job (`fetch`): what it is told and what it reports.
//!
//! The job is one JSON document in the descriptor of `--config-fd`; every file in it is an inherited descriptor.
//! The report is one JSON [`Report`] a line on the report descriptor; the last one is `Done` or `Failed`.

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use super::{Document, Version};

/// One job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Version of this shape.
    pub version: Version<1>,
    /// Where reports go.
    pub report_fd: RawFd,
    /// The server.
    pub server: Server,
    /// What to do.
    pub task: Task,
}

impl Document for Job {
    const KIND: &'static str = "fetch job";
    const VERSION: u32 = 1;
    const MAX_BYTES: usize = 1 << 20;
}

/// The image server (an EVE datastore, resolved).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Base URL: `https://host[:port]` or, for plain files only, `http://host[:port]`, without a path.
    pub base_url: String,
    /// User name; empty = none.
    pub user: String,
    /// Password.
    pub password: String,
    /// Certificate authorities to trust, PEM. None others are trusted.
    pub ca_pem: Vec<String>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The password never reaches a log.
        f.debug_struct("Server").field("base_url", &self.base_url).field("user", &self.user).finish_non_exhaustive()
    }
}

/// What to fetch and what to make of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Task {
    /// Pull a container image and flatten it into one erofs image.
    Oci {
        /// `library/nginx`.
        repository: String,
        /// Tag, or `sha256:...` digest of the manifest or index.
        reference: String,
        /// SHA-256 hex that the manifest (or index) must have; empty = not given.
        sha256: String,
        /// Longest total of compressed layers, and of the flattened image, in bytes; 0 = only the built-in cap.
        max_bytes: u64,
        /// The erofs image is written here (read-write, truncated first).
        output_fd: RawFd,
        /// Directory for nameless spool files.
        spool_fd: RawFd,
    },
    /// Stream an update payload into the other slot, each chunk verified before it is written.
    Update {
        /// Path on the server, beginning with `/`.
        path: String,
        /// SHA-256 hex of the whole payload; empty = not given (its signature always counts).
        sha256: String,
        /// Longest payload in bytes; 0 = the slots' sizes bound it.
        max_bytes: u64,
        /// Release public key, PEM.
        release_key_pem: String,
        /// Product that the payload must be for.
        product: String,
        /// Lowest security epoch accepted.
        min_epoch: u32,
        /// Version that the payload must carry.
        version: String,
        /// The ESP partition to write.
        esp_fd: RawFd,
        /// The OS partition to write.
        os_fd: RawFd,
    },
    /// A plain file.
    Blob {
        /// Path on the server, beginning with `/`.
        path: String,
        /// SHA-256 hex that it must have; empty = not given.
        sha256: String,
        /// Longest in bytes; 0 = only the built-in cap.
        max_bytes: u64,
        /// The file is written here.
        output_fd: RawFd,
    },
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Report {
    /// How far it is; at most a few a second.
    Progress {
        /// Phase.
        phase: Phase,
        /// Bytes done.
        bytes: u64,
        /// Bytes in all; 0 while not known.
        total: u64,
    },
    /// Complete and synced.
    Done(Outcome),
    /// Failed; nothing usable is left in the outputs.
    Failed {
        /// Class.
        class: FailureClass,
        /// Names the URL or object, what was expected, what was found.
        text: String,
    },
}

/// Phases of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// A tag is being resolved.
    Resolving,
    /// Bytes are coming.
    Downloading,
    /// Being unpacked or checked.
    Verifying,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome {
    /// A container image.
    Oci {
        /// SHA-256 hex of the manifest (of the platform, when an index was asked for).
        manifest_sha256: String,
        /// Bytes of the erofs image.
        size_bytes: u64,
        /// How to run it.
        config: ImageConfig,
    },
    /// An update is in the other slot.
    Update {
        /// Version text.
        version: String,
        /// Security epoch.
        epoch: u32,
    },
    /// A file.
    Blob {
        /// SHA-256 hex.
        sha256: String,
        /// Bytes.
        size_bytes: u64,
    },
}

/// The part of the OCI image configuration that running needs (OCI image spec, `config.json`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageConfig {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`.
    pub env: Vec<String>,
    /// `User`.
    pub user: String,
    /// `WorkingDir`.
    pub working_dir: String,
    /// `StopSignal`.
    pub stop_signal: String,
}

/// Whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureClass {
    /// The network or server: try again later.
    Transport,
    /// The server refused (401, 403, 404).
    Refused,
    /// What came is not what was promised: digest, signature, format, size.
    Content,
    /// This device: no space, a bad descriptor, a bug.
    Local,
}
