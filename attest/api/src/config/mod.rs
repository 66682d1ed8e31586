//! From `EdgeDevConfig` to [`Desired`]: every object is read on its own, and a fault stays with its object.
//!
//! An object with a fault is absent from the result and named in [`Desired::faults`], as is an object that refers to
//! it. The exception are ports, adapters and networks: what can still be used of them is kept, because losing them
//! could cut the device off from the controller that would send the repair.
//!
//! Fields that are set and not acted on are warnings of their object, which is used all the same.
//!
//! Reading order: this file, `device`, `network`, `rules`, `storage`, `app`; `acted` (what is done with each field), `unsupported`
//! (names the rest), `wire`; `limits`, `text`.

mod acted;
mod app;
mod device;
mod limits;
mod network;
mod rules;
mod storage;
#[cfg(test)]
mod tests;
mod text;
mod unsupported;
mod wire;

use crate::cipher::{Decryptor, Keys};
use crate::proto::config::EdgeDevConfig;
use holdfast_model::check;
use holdfast_model::desired::Desired;
use holdfast_model::trouble::{Object, ObjectKind, Trouble};
use prost::Message as _;
use std::collections::HashSet;
use text::quoted;
use uuid::Uuid;

/// Reads a config.
///
/// `keys` decrypts the secrets in it; without them an object whose secrets exist only encrypted has a fault.
#[must_use]
pub fn to_desired(config: &EdgeDevConfig, keys: Option<Keys<'_>>) -> Desired {
    read(config, &config.encode_to_vec(), keys)
}

/// Reads a config, and in `response`, the `ConfigResponse` that it came in, also what is newer than the messages known here.
#[must_use]
pub fn from_response(config: &EdgeDevConfig, response: &[u8], keys: Option<Keys<'_>>) -> Desired {
    /// Number of `ConfigResponse.config`.
    const CONFIG: u32 = 1;
    let mut encoded = Vec::new();
    // Parts of one message that come apart are one message.
    wire::each(response, |number, value| {
        if let (CONFIG, wire::Value::Bytes(bytes)) = (number, value) {
            encoded.extend_from_slice(bytes);
        }
    });
    read(config, &encoded, keys)
}

fn read(config: &EdgeDevConfig, encoded: &[u8], keys: Option<Keys<'_>>) -> Desired {
    let secrets = Decryptor::new(&config.cipher_contexts, keys);
    let mut faults = Faults::default();
    let mut desired = Desired::default();

    device::read(config, &mut desired, &mut faults);
    network::read(config, &mut desired, &mut faults);
    storage::read(config, &secrets, &mut desired, &mut faults);
    app::read(config, &secrets, &mut desired, &mut faults);
    device::read_base_os(config, &mut desired, &mut faults);

    desired.faults = faults.0;
    check::apps::check(&mut desired);
    desired.faults.extend(unsupported::warnings(config, encoded));
    desired
}

/// The faults found so far.
#[derive(Default)]
struct Faults(Vec<Trouble>);

impl Faults {
    fn add(&mut self, kind: ObjectKind, id: &str, name: &str, text: impl Into<String>) {
        self.0.push(Trouble::error(Object::new(kind, quoted(id), &quoted(name)), text));
    }

    /// Notes what is left out while the object is used all the same.
    fn warn(&mut self, kind: ObjectKind, id: &str, name: &str, text: impl Into<String>) {
        self.0.push(Trouble::warning(Object::new(kind, quoted(id), &quoted(name)), text));
    }
}

/// How an object is named in its fault.
struct Named<'a> {
    id: &'a str,
    name: &'a str,
}

/// Reads the objects of one kind: each fault is noted, a second object of the same id is one, and so is each beyond
/// [`limits::OBJECTS`].
fn read_all<'a, W, M>(
    kind: ObjectKind,
    wire: &'a [W],
    faults: &mut Faults,
    named: impl Fn(&'a W) -> Named<'a>,
    mut read: impl FnMut(&'a W) -> Result<Option<M>, String>,
) -> Vec<M> {
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for (index, object) in wire.iter().enumerate() {
        let Named { id, name } = named(object);
        let result = if index >= limits::OBJECTS {
            Err(format!(
                "the config holds {} objects of this kind: expected at most {}; this one is left out",
                wire.len(),
                limits::OBJECTS
            ))
        } else if !seen.insert(id.to_ascii_lowercase()) {
            Err("a second object with this id; only the first is used".to_owned())
        } else {
            read(object)
        };
        match result {
            Ok(Some(object)) => out.push(object),
            Ok(None) => {}
            Err(text) => faults.add(kind, id, name, text),
        }
    }
    out
}

/// The device's own id as the config gives it.
fn device_id(config: &EdgeDevConfig) -> &str {
    config.id.as_ref().map_or("", |id| &id.uuid)
}

/// A UUID in text form.
fn uuid(what: &str, text: &str) -> Result<Uuid, String> {
    Uuid::try_parse(text).map_err(|_| format!("{what}: expected a UUID, found {:?}", quoted(text)))
}
