//! What a quote proves: reads a TPM's attestation structure, recomputes the digest over the PCR values, and replays the
//! firmware's event log. Formats: TPM 2.0 Library Part 2, §10.12 (TPMS_ATTEST); TCG PC Client Platform Firmware
//! Profile, §10 (crypto-agile event log). All integers of the first are big-endian, of the second little-endian.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Bits of a SHA-256 PCR.
pub type Pcr = [u8; 32];

/// Most bytes of an unpacked event log that are read.
pub const MAX_EVENT_LOG: u64 = 1 << 20;
/// Most events of one log.
const MAX_EVENTS: usize = 4096;

const MAGIC: u32 = 0xff54_4347;
const ST_ATTEST_QUOTE: u16 = 0x8018;
const ALG_SHA256: u16 = 0x000b;
const EV_NO_ACTION: u32 = 3;

/// Why a quote or an event log was not understood or does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    /// Ends too early, or bytes remain.
    #[error("{what}: malformed at byte {offset}")]
    Malformed {
        /// Structure that was read.
        what: &'static str,
        /// Where.
        offset: usize,
    },
    /// A field has another value than a quote has.
    #[error("attestation data: field {field}: expected {expected}, found {found}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What a quote has there.
        expected: String,
        /// What was there.
        found: String,
    },
    /// The digest does not belong to the values.
    #[error("PCR digest: the quoted digest is not the one of the PCR values sent with it")]
    Digest,
    /// The log cannot be unpacked.
    #[error("event log: gzip: {0}")]
    Gzip(String),
}

/// The fields of a TPM2 quote that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// The nonce.
    pub extra_data: Vec<u8>,
    /// Indices of the selected PCRs of the SHA-256 bank, ascending.
    pub pcrs: Vec<u32>,
    /// Digest over the selected PCRs.
    pub pcr_digest: Vec<u8>,
    /// Times the TPM was reset (cleared at power on of a new machine state).
    pub reset_count: u32,
}

/// A cursor over untrusted bytes.
struct Reader<'a> {
    what: &'static str,
    data: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    fn new(what: &'static str, data: &'a [u8]) -> Self {
        Self { what, data, offset: 0 }
    }

    fn malformed(&self) -> QuoteError {
        QuoteError::Malformed { what: self.what, offset: self.offset }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], QuoteError> {
        let end =
            self.offset.checked_add(count).filter(|end| *end <= self.data.len()).ok_or_else(|| self.malformed())?;
        let bytes = &self.data[self.offset..end];
        self.offset = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], QuoteError> {
        let bytes = self.take(N)?;
        Ok(bytes.try_into().expect("take returns as many bytes as asked"))
    }

    fn be16(&mut self) -> Result<u16, QuoteError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn be32(&mut self) -> Result<u32, QuoteError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn le16(&mut self) -> Result<u16, QuoteError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn le32(&mut self) -> Result<u32, QuoteError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// A TPM2B: two bytes of length, then the bytes.
    fn sized(&mut self) -> Result<&'a [u8], QuoteError> {
        let size = usize::from(self.be16()?);
        self.take(size)
    }

    fn done(&self) -> bool {
        self.offset == self.data.len()
    }
}

fn field(field: &'static str, expected: impl ToString, found: impl ToString) -> QuoteError {
    QuoteError::Field { field, expected: expected.to_string(), found: found.to_string() }
}

impl Quote {
    /// Reads a marshalled TPMS_ATTEST of type quote with one SHA-256 selection.
    pub fn parse(data: &[u8]) -> Result<Self, QuoteError> {
        let mut r = Reader::new("attestation data", data);
        let magic = r.be32()?;
        if magic != MAGIC {
            return Err(field("magic", format!("{MAGIC:#x}"), format!("{magic:#x}")));
        }
        let kind = r.be16()?;
        if kind != ST_ATTEST_QUOTE {
            return Err(field("type", format!("{ST_ATTEST_QUOTE:#x}"), format!("{kind:#x}")));
        }
        let _qualified_signer = r.sized()?;
        let extra_data = r.sized()?.to_vec();
        let _clock = r.take(8)?;
        let reset_count = r.be32()?;
        let _restart_count = r.be32()?;
        let _safe = r.take(1)?;
        let _firmware_version = r.take(8)?;
        let selections = r.be32()?;
        if selections != 1 {
            return Err(field("PCR selections", 1, selections));
        }
        let bank = r.be16()?;
        if bank != ALG_SHA256 {
            return Err(field("PCR bank", format!("{ALG_SHA256:#x}"), format!("{bank:#x}")));
        }
        let [size] = r.array()?;
        let bitmap = r.take(usize::from(size))?;
        let pcrs = (0u32..)
            .zip(bitmap.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)))
            .filter_map(|(index, set)| set.then_some(index))
            .collect();
        let pcr_digest = r.sized()?.to_vec();
        if !r.done() {
            return Err(r.malformed());
        }
        Ok(Self { extra_data, pcrs, pcr_digest, reset_count })
    }

    /// Checks that `values` are exactly the selected PCRs and give the quoted digest.
    pub fn check_values(&self, values: &BTreeMap<u32, Pcr>) -> Result<(), QuoteError> {
        let sent: Vec<u32> = values.keys().copied().collect();
        if sent != self.pcrs {
            return Err(field("PCR values", format!("{:?}", self.pcrs), format!("{sent:?}")));
        }
        let mut hash = Sha256::new();
        for value in values.values() {
            hash.update(value);
        }
        if hash.finalize().as_slice() != self.pcr_digest {
            return Err(QuoteError::Digest);
        }
        Ok(())
    }
}

/// What an event log says the SHA-256 bank should hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Replay {
    /// Events read.
    pub events: usize,
    /// Final value of each PCR that some event extended.
    pub pcrs: BTreeMap<u32, Pcr>,
}

impl Replay {
    /// PCRs whose quoted value is not what the log leads to. A PCR that was extended after the firmware handed over
    /// (by PID 1, say) is in this list by nature.
    pub fn mismatches(&self, quoted: &BTreeMap<u32, Pcr>) -> Vec<u32> {
        self.pcrs
            .iter()
            .filter(|(index, value)| quoted.get(index).is_some_and(|q| q != *value))
            .map(|(index, _)| *index)
            .collect()
    }
}

/// Unpacks (gzip, bounded) and replays an event log.
pub fn replay_gzip(data: &[u8]) -> Result<Replay, QuoteError> {
    use std::io::Read;
    let mut log = Vec::new();
    flate2::read::GzDecoder::new(data)
        .take(MAX_EVENT_LOG + 1)
        .read_to_end(&mut log)
        .map_err(|error| QuoteError::Gzip(error.to_string()))?;
    if log.len() as u64 > MAX_EVENT_LOG {
        return Err(QuoteError::Gzip(format!("more than {MAX_EVENT_LOG} bytes unpacked")));
    }
    replay(&log)
}

/// Replays the SHA-256 digests of a crypto-agile event log.
pub fn replay(log: &[u8]) -> Result<Replay, QuoteError> {
    let mut r = Reader::new("event log", log);
    // First record, in the old form: PCR, type, SHA-1 digest, size, data; its data lists the digest sizes.
    let _pcr = r.le32()?;
    let kind = r.le32()?;
    let _digest = r.take(20)?;
    let size = r.le32()? as usize;
    let data = r.take(size)?;
    let mut header = Reader::new("event log header", data);
    if kind != EV_NO_ACTION || header.take(16)? != b"Spec ID Event03\0" {
        return Err(r.malformed());
    }
    let _class_versions = header.take(8)?;
    let algorithms = header.le32()?;
    if algorithms > 16 {
        return Err(header.malformed());
    }
    let mut sizes = BTreeMap::new();
    for _ in 0..algorithms {
        let id = header.le16()?;
        let size = usize::from(header.le16()?);
        sizes.insert(id, size);
    }

    let mut out = Replay::default();
    while !r.done() {
        if out.events == MAX_EVENTS {
            return Err(r.malformed());
        }
        let pcr = r.le32()?;
        let kind = r.le32()?;
        let count = r.le32()?;
        if count > 16 || pcr > 31 {
            return Err(r.malformed());
        }
        let mut sha256 = None;
        for _ in 0..count {
            let id = r.le16()?;
            let size = *sizes.get(&id).ok_or_else(|| r.malformed())?;
            let digest = r.take(size)?;
            if id == ALG_SHA256 {
                sha256 = Some(Pcr::try_from(digest).map_err(|_| r.malformed())?);
            }
        }
        let size = r.le32()? as usize;
        let data = r.take(size)?;
        out.events += 1;
        if kind == EV_NO_ACTION {
            // PC Client profile §10.4.5.3: the locality of startup is the initial value of PCR 0.
            if let Some(locality) = data.strip_prefix(b"StartupLocality\0") {
                let mut initial = [0; 32];
                initial[31] = locality.first().copied().unwrap_or(0);
                out.pcrs.insert(pcr, initial);
            }
            continue;
        }
        let digest = sha256.ok_or_else(|| r.malformed())?;
        let value = out.pcrs.entry(pcr).or_insert([0; 32]);
        *value = Sha256::new().chain_update(*value).chain_update(digest).finalize().into();
    }
    Ok(out)
}

/// Fuzz entry: a quote and an event log made of any bytes.
#[doc(hidden)]
pub fn fuzz_quote(data: &[u8]) {
    if let Ok(quote) = Quote::parse(data) {
        let _ = quote.check_values(&BTreeMap::new());
    }
    let _ = replay(data);
    let _ = replay_gzip(data);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A TPMS_ATTEST written by hand.
    pub(crate) fn attest(nonce: &[u8], pcrs: &BTreeMap<u32, Pcr>) -> Vec<u8> {
        let mut out = vec![0xff, 0x54, 0x43, 0x47, 0x80, 0x18, 0, 0];
        out.extend((nonce.len() as u16).to_be_bytes());
        out.extend(nonce);
        out.extend([0; 25]);
        out.extend(1u32.to_be_bytes());
        out.extend([0, 0x0b, 3]);
        let mut bitmap = [0u8; 3];
        let mut hash = Sha256::new();
        for (index, value) in pcrs {
            bitmap[*index as usize / 8] |= 1 << (index % 8);
            hash.update(value);
        }
        out.extend(bitmap);
        out.extend([0, 32]);
        out.extend(hash.finalize());
        out
    }

    fn sixteen() -> BTreeMap<u32, Pcr> {
        (0..16).map(|i| (i, [i as u8; 32])).collect()
    }

    #[test]
    fn a_quote_is_read_and_its_values_checked() {
        let quote = Quote::parse(&attest(b"nonce-nonce!", &sixteen())).expect("quote");
        assert_eq!(quote.extra_data, b"nonce-nonce!");
        assert_eq!(quote.pcrs, (0..16).collect::<Vec<_>>());
        assert_eq!(quote.check_values(&sixteen()), Ok(()));
        let mut other = sixteen();
        other.insert(11, [0xff; 32]);
        assert_eq!(quote.check_values(&other), Err(QuoteError::Digest));
        other = sixteen();
        other.remove(&15);
        assert!(matches!(quote.check_values(&other), Err(QuoteError::Field { .. })));
    }

    #[test]
    fn another_attestation_type_or_trailing_bytes_are_refused() {
        let good = attest(b"n", &sixteen());
        let mut certify = good.clone();
        certify[5] = 0x17;
        assert!(Quote::parse(&certify).is_err());
        let mut long = good.clone();
        long.push(0);
        assert!(Quote::parse(&long).is_err());
        for end in 0..good.len() {
            assert!(Quote::parse(&good[..end]).is_err(), "prefix of {end} bytes");
        }
    }

    pub(crate) fn event_log(events: &[(u32, u32, &[u8])]) -> Vec<u8> {
        let mut header = b"Spec ID Event03\0".to_vec();
        header.extend([0, 0, 0, 0, 0, 2, 0, 2]);
        header.extend(2u32.to_le_bytes());
        header.extend([4, 0, 20, 0, 0x0b, 0, 32, 0, 0]);
        let mut out = Vec::new();
        out.extend(0u32.to_le_bytes());
        out.extend(3u32.to_le_bytes());
        out.extend([0; 20]);
        out.extend((header.len() as u32).to_le_bytes());
        out.extend(header);
        for (pcr, kind, data) in events {
            out.extend(pcr.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend(2u32.to_le_bytes());
            out.extend([4, 0]);
            out.extend([0; 20]);
            out.extend([0x0b, 0]);
            out.extend(Sha256::digest(data));
            out.extend((data.len() as u32).to_le_bytes());
            out.extend(*data);
        }
        out
    }

    #[test]
    fn an_event_log_replays_to_pcr_values() {
        let log = event_log(&[(0, 3, b"StartupLocality\0\x03"), (0, 8, b"a"), (7, 1, b"b"), (7, 1, b"c")]);
        let replay = replay(&log).expect("log");
        assert_eq!(replay.events, 4);
        let extend = |old: Pcr, data: &[u8]| -> Pcr {
            Sha256::digest([old.as_slice(), Sha256::digest(data).as_slice()].concat()).into()
        };
        let mut start = [0; 32];
        start[31] = 3;
        let pcr7 = extend(extend([0; 32], b"b"), b"c");
        assert_eq!(replay.pcrs[&0], extend(start, b"a"));
        assert_eq!(replay.pcrs[&7], pcr7);
        let quoted = BTreeMap::from([(0, [9; 32]), (7, pcr7), (11, [1; 32])]);
        assert_eq!(replay.mismatches(&quoted), vec![0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn any_bytes_are_read_without_panic(data in proptest::collection::vec(any::<u8>(), 0..400)) {
            fuzz_quote(&data);
        }

        #[test]
        fn a_damaged_log_is_read_without_panic(at in 0usize..200, value: u8) {
            let mut log = event_log(&[(0, 8, b"aaaa"), (7, 1, b"bbbb")]);
            let at = at % log.len();
            log[at] = value;
            let _ = replay(&log);
        }
    }
}
