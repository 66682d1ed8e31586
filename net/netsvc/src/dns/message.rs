//! DNS messages as far as a forwarder needs them (RFC 1035 §4): header, question, own answers.

use std::net::IpAddr;
use thiserror::Error;

/// Record type A.
pub const A: u16 = 1;
/// Record type PTR.
pub const PTR: u16 = 12;
/// Record type AAAA.
pub const AAAA: u16 = 28;
/// Any type.
pub const ANY: u16 = 255;
const CLASS_IN: u16 = 1;
const HEADER: usize = 12;
/// Seconds that own answers may be cached.
const TTL: u32 = 10;

/// Why a packet is no query.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ParseError {
    /// Shorter than header and question.
    #[error("DNS message of {0} bytes is too short")]
    Short(usize),
    /// A response, or another operation than a standard query.
    #[error("DNS flags {0:04x}, expected a standard query")]
    NotQuery(u16),
    /// Not exactly one question.
    #[error("DNS query with {0} questions, expected 1")]
    Questions(u16),
    /// A label or name is too long, cut, or compressed where nothing can be.
    #[error("DNS name is malformed")]
    Name,
}

/// Response code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Fine.
    NoError = 0,
    /// The forwarder could not get an answer.
    ServerFailure = 2,
    /// There is no such name.
    NameError = 3,
    /// Not done here.
    Refused = 5,
}

/// Data of an answer record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A or AAAA.
    Address(IpAddr),
    /// PTR to a dotted name.
    Name(String),
}

/// A query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Transaction id.
    pub id: u16,
    /// Name in lower case, labels joined by dots, without the last dot.
    pub name: Vec<u8>,
    /// Record type.
    pub kind: u16,
    /// Class.
    pub class: u16,
    recursion_desired: bool,
    question: Vec<u8>,
}

/// Length of the question's bytes, and its name.
fn read_question(data: &[u8]) -> Result<(usize, Vec<u8>), ParseError> {
    let mut at = 0;
    let mut name = Vec::new();
    loop {
        let len = usize::from(*data.get(at).ok_or(ParseError::Short(data.len()))?);
        at += 1;
        match len {
            0 => break,
            1..=63 => {
                let label = data.get(at..at + len).ok_or(ParseError::Short(data.len()))?;
                if !name.is_empty() {
                    name.push(b'.');
                }
                // A dot inside a label would let one name pose as another.
                if label.contains(&b'.') {
                    return Err(ParseError::Name);
                }
                name.extend(label.iter().map(u8::to_ascii_lowercase));
                at += len;
            }
            _ => return Err(ParseError::Name),
        }
        if name.len() > 253 {
            return Err(ParseError::Name);
        }
    }
    if data.len() < at + 4 {
        return Err(ParseError::Short(data.len()));
    }
    Ok((at + 4, name))
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*data.get(at)?, *data.get(at + 1)?]))
}

impl Query {
    /// Reads a query.
    pub fn parse(data: &[u8]) -> Result<Self, ParseError> {
        let short = ParseError::Short(data.len());
        let (Some(id), Some(flags), Some(questions), true) =
            (u16_at(data, 0), u16_at(data, 2), u16_at(data, 4), data.len() > HEADER)
        else {
            return Err(short);
        };
        // QR must be 0 and OPCODE 0.
        if flags & 0xf800 != 0 {
            return Err(ParseError::NotQuery(flags));
        }
        if questions != 1 {
            return Err(ParseError::Questions(questions));
        }
        let (len, name) = read_question(&data[HEADER..])?;
        let question = data[HEADER..HEADER + len].to_vec();
        Ok(Self {
            id,
            name,
            kind: u16_at(&question, len - 4).unwrap_or(0),
            class: u16_at(&question, len - 2).unwrap_or(0),
            recursion_desired: flags & 0x0100 != 0,
            question,
        })
    }

    /// True for the class Internet.
    #[must_use]
    pub fn is_internet(&self) -> bool {
        self.class == CLASS_IN
    }

    /// An answer of our own.
    #[must_use]
    pub fn reply(&self, code: Code, records: &[Record]) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(&self.id.to_be_bytes());
        // QR, AA when there is an answer of ours, RD as asked, RA.
        let mut flags = 0x8080 | u16::from(code as u8);
        if self.recursion_desired {
            flags |= 0x0100;
        }
        if matches!(code, Code::NoError) {
            flags |= 0x0400;
        }
        out.extend_from_slice(&flags.to_be_bytes());
        // One question, the answers, nothing else. 24 records fit in 512 bytes.
        let records = &records[..records.len().min(8)];
        for count in [1, records.len() as u16, 0, 0] {
            out.extend_from_slice(&count.to_be_bytes());
        }
        out.extend_from_slice(&self.question);
        for r in records {
            let (kind, data) = match r {
                Record::Address(IpAddr::V4(a)) => (A, a.octets().to_vec()),
                Record::Address(IpAddr::V6(a)) => (AAAA, a.octets().to_vec()),
                Record::Name(n) => (PTR, encode_name(n)),
            };
            // The name is the question's, at offset 12.
            out.extend_from_slice(&[0xc0, 12]);
            out.extend_from_slice(&kind.to_be_bytes());
            out.extend_from_slice(&CLASS_IN.to_be_bytes());
            out.extend_from_slice(&TTL.to_be_bytes());
            out.extend_from_slice(&(data.len() as u16).to_be_bytes());
            out.extend_from_slice(&data);
        }
        out
    }
}

/// Wire form of a dotted name. Labels longer than 63 bytes are cut.
#[must_use]
pub fn encode_name(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.').filter(|l| !l.is_empty()) {
        let label = &label.as_bytes()[..label.len().min(63)];
        out.push(label.len() as u8);
        out.extend_from_slice(label);
    }
    out.truncate(254);
    out.push(0);
    out
}

/// True when `answer` is a response to `query`: same id, same question (in any case of letters).
#[must_use]
pub fn is_reply_to(answer: &[u8], query: &[u8]) -> bool {
    let (Some(flags), Some(1)) = (u16_at(answer, 2), u16_at(answer, 4)) else {
        return false;
    };
    if flags & 0x8000 == 0 || answer.get(..2) != query.get(..2) {
        return false;
    }
    let (Some(asked), Some(told)) = (query.get(HEADER..), answer.get(HEADER..)) else {
        return false;
    };
    let Ok((len, _)) = read_question(asked) else {
        return false;
    };
    told.get(..len).is_some_and(|t| t.eq_ignore_ascii_case(&asked[..len]))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
        let mut q = id.to_be_bytes().to_vec();
        q.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        q.extend(encode_name(name));
        q.extend(kind.to_be_bytes());
        q.extend([0, 1]);
        q
    }

    #[test]
    fn query_is_read_and_answered() {
        let raw = query(0x1234, "Web.Local", A);
        let q = Query::parse(&raw).expect("query");
        assert_eq!((q.id, q.name.as_slice(), q.kind, q.is_internet()), (0x1234, &b"web.local"[..], A, true));
        let reply = q.reply(Code::NoError, &[Record::Address("10.1.0.5".parse().expect("ip"))]);
        assert!(is_reply_to(&reply, &raw));
        assert_eq!(&reply[2..12], &[0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(&reply[raw.len()..], &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 10, 0, 4, 10, 1, 0, 5]);
    }

    #[test]
    fn responses_compression_and_several_questions_are_refused() {
        let mut q = query(1, "a", A);
        q[2] = 0x81;
        assert_eq!(Query::parse(&q), Err(ParseError::NotQuery(0x8100)));
        let mut q = query(1, "a", A);
        q[5] = 2;
        assert_eq!(Query::parse(&q), Err(ParseError::Questions(2)));
        let mut q = query(1, "a", A);
        q[12] = 0xc0;
        assert_eq!(Query::parse(&q), Err(ParseError::Name));
        let q = query(1, "a", A);
        assert!(matches!(Query::parse(&q[..q.len() - 1]), Err(ParseError::Short(_))));
    }

    #[test]
    fn reply_to_another_question_is_noticed() {
        let raw = query(1, "a.example", A);
        let other = Query::parse(&query(1, "b.example", A)).expect("query").reply(Code::NoError, &[]);
        assert!(!is_reply_to(&other, &raw));
        assert!(!is_reply_to(&raw, &raw));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            crate::dns::fuzz_dns(&data);
            let mut framed = query(1, "", A)[..12].to_vec();
            framed.extend(data);
            crate::dns::fuzz_dns(&framed);
        }
    }
}
