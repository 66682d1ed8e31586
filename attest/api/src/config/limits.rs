//! How much of everything a config may hold, in one place. What is beyond is a fault of its object, in these numbers.

/// Objects of one kind: apps, volumes, networks...
pub(super) const OBJECTS: usize = 256;
/// Interfaces, and disks, of one app.
pub(super) const DEVICES: usize = 16;
/// Virtual CPUs of one app.
pub(super) const VCPUS: u32 = 64;
/// Rules of one interface.
pub(super) const RULES: usize = 512;
/// Largest id of a rule: ids travel in connection marks, 24 bits of them.
pub(super) const RULE_ID: u32 = 0x00ff_ffff;
/// Bytes of decoded user data.
pub(super) const USER_DATA: usize = 256 * 1024;
/// Characters of a text that is only shown: display names, versions. More are cut off.
pub(super) const SHOWN: usize = 256;
/// Characters of a text that names something to the device: labels, host names, paths.
pub(super) const NAME: usize = 1024;
/// Characters of a domain name (RFC 1035 §2.3.4).
pub(super) const DOMAIN: usize = 253;
/// Bytes of one certificate, key or password.
pub(super) const SECRET: usize = 64 * 1024;
/// Characters of a config's text that a fault quotes.
pub(super) const QUOTED: usize = 80;
/// Fields that one warning about unsupported fields names.
pub(super) const NAMED_FIELDS: usize = 12;
