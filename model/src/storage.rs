//! Datastores, content trees (images) and volumes.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Kind of an image server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DatastoreKind {
    /// Plain HTTP.
    Http,
    /// HTTPS.
    Https,
    /// OCI container registry over HTTPS.
    ContainerRegistry,
}

/// An image server.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datastore {
    /// Its id.
    pub id: Uuid,
    /// Kind.
    pub kind: DatastoreKind,
    /// Host with optional scheme and port, as given.
    pub host: String,
    /// Path prefix or repository prefix; may be empty.
    pub path: String,
    /// User name, empty when none.
    pub user: String,
    /// Password, empty when none.
    pub password: String,
    /// Extra certificate authorities, PEM.
    pub ca_pem: Vec<String>,
}

impl std::fmt::Debug for Datastore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The password never reaches a log.
        f.debug_struct("Datastore")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("host", &self.host)
            .field("path", &self.path)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Format of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFormat {
    /// Raw bytes.
    Raw,
    /// QEMU copy-on-write 2.
    Qcow2,
    /// OCI container image.
    Container,
    /// Any other EVE format by number: named in the fault when used.
    Other(i32),
}

/// An image to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentTree {
    /// Its id.
    pub id: Uuid,
    /// Label.
    pub name: String,
    /// Datastores to try in order.
    pub datastores: Vec<Uuid>,
    /// Path under the datastore; for OCI `repository:tag` or `repository@sha256:...`.
    pub path: String,
    /// Format.
    pub format: ImageFormat,
    /// Lower-case hex of the file, or of the OCI manifest; empty = not given (OCI only).
    pub sha256: String,
    /// Cap in bytes; 0 = none given.
    pub max_size_bytes: u64,
    /// Grows when a tag is to be resolved again.
    pub generation: i64,
}

/// What a volume starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeOrigin {
    /// Empty.
    Blank,
    /// An image.
    Content(Uuid),
}

impl VolumeOrigin {
    /// The image, when it starts from one.
    #[must_use]
    pub const fn content(self) -> Option<Uuid> {
        match self {
            Self::Content(id) => Some(id),
            Self::Blank => None,
        }
    }
}

/// A disk to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id.
    pub id: Uuid,
    /// Label.
    pub name: String,
    /// Start.
    pub origin: VolumeOrigin,
    /// Grows when the volume is to be made anew.
    pub generation: i64,
    /// Virtual size in bytes; 0 = the image's size (blank: a fault).
    pub max_size_bytes: u64,
    /// Read-only.
    pub read_only: bool,
}
