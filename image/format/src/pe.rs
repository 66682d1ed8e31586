//! PE32+ images: read the section table, append sections (Microsoft PE/COFF specification, rev. 11).
//!
//! The stub of systemd is a PE file; a UKI is the stub with sections appended. Offsets used here:
//!
//! ```text
//!  0x3c          offset of "PE\0\0" (below: pe)
//!  pe+6   u16    NumberOfSections        pe+8  u32  TimeDateStamp      pe+20 u16 SizeOfOptionalHeader
//!  pe+12  u32    PointerToSymbolTable    pe+16  u32 NumberOfSymbols
//!  opt = pe+24   magic 0x20b
//!  opt+8  u32    SizeOfInitializedData   opt+32 u32 SectionAlignment   opt+36 u32 FileAlignment
//!  opt+56 u32    SizeOfImage             opt+60 u32 SizeOfHeaders      opt+64 u32 CheckSum
//!  opt+144       certificate table: file offset u32, size u32
//!  sections: 40 bytes each: name[8] VirtualSize VirtualAddress SizeOfRawData PointerToRawData ... Characteristics
//! ```

use crate::io::{le16, le32, round_up};

const SECTION_HEADER: usize = 40;
/// Read-only initialised data.
const CHARACTERISTICS: u32 = 0x4000_0040;
/// Sections a PE file may have here; firmware and stub have no use for more.
const MAX_SECTIONS: usize = 96;

/// What is wrong with a PE image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeError {
    /// Not a PE32+ image, or cut short.
    #[error("not a PE32+ image: {0}")]
    Malformed(&'static str),
    /// A section lies outside the file.
    #[error("PE section {name:?}: {what}")]
    Section {
        /// Its name.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The section table has no room for what is to be added.
    #[error("PE header has room for {free} more sections, {wanted} are to be added: use another stub")]
    NoRoom {
        /// Free section headers.
        free: usize,
        /// Sections to add.
        wanted: usize,
    },
    /// The image carries a signature already.
    #[error("PE image is signed already; sections can be added to an unsigned image only")]
    Signed,
}

/// A section of a parsed image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Name without padding.
    pub name: String,
    /// Address in memory.
    pub virtual_address: u32,
    /// Exact length of the data.
    pub virtual_size: u32,
    /// Place in the file.
    pub raw_offset: u32,
    /// Length in the file, padded.
    pub raw_size: u32,
}

impl Section {
    /// The section's data within `image`: its virtual size, as the stub measures it.
    #[must_use]
    pub fn data<'a>(&self, image: &'a [u8]) -> &'a [u8] {
        let start = self.raw_offset as usize;
        let len = self.virtual_size.min(self.raw_size) as usize;
        image.get(start..start.saturating_add(len)).unwrap_or_default()
    }
}

/// The header fields that matter, and the sections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pe {
    /// File offset of "PE\0\0".
    pub pe_offset: usize,
    /// Bytes of all headers.
    pub size_of_headers: u32,
    /// Alignment of sections in memory.
    pub section_alignment: u32,
    /// Alignment of sections in the file.
    pub file_alignment: u32,
    /// File offset of the first section header.
    pub section_table: usize,
    /// In table order.
    pub sections: Vec<Section>,
    /// Offset and size of the attribute certificate table; (0, 0) when unsigned.
    pub certificates: (u32, u32),
}

impl Pe {
    /// Reads the headers of an untrusted image; every section is checked to lie within `image`.
    ///
    /// # Errors
    /// [`PeError::Malformed`] or [`PeError::Section`].
    pub fn parse(image: &[u8]) -> Result<Pe, PeError> {
        use PeError::Malformed;
        if image.get(..2) != Some(b"MZ") {
            return Err(Malformed("no MZ signature"));
        }
        let pe = le32(image, 0x3c).ok_or(Malformed("shorter than its DOS header"))? as usize;
        let pe = Some(pe).filter(|pe| *pe <= 0x10_0000).ok_or(Malformed("PE header too far from the start"))?;
        if image.get(pe..pe + 4) != Some(b"PE\0\0") {
            return Err(Malformed("no PE signature"));
        }
        let short = Malformed("headers are cut short");
        let u16at = |at| le16(image, at).ok_or(short.clone());
        let u32at = |at| le32(image, at).ok_or(short.clone());
        let opt = pe + 24;
        if u16at(opt)? != 0x20b {
            return Err(Malformed("optional header is not PE32+"));
        }
        let optional_bytes = u16at(pe + 20)? as usize;
        if optional_bytes < 152 || u32at(opt + 108)? < 5 {
            return Err(Malformed("no entry for the certificate table"));
        }
        let count = u16at(pe + 6)? as usize;
        if count > MAX_SECTIONS {
            return Err(Malformed("more than 96 sections"));
        }
        let (section_alignment, file_alignment) = (u32at(opt + 32)?, u32at(opt + 36)?);
        if [section_alignment, file_alignment].iter().any(|a| !a.is_power_of_two() || *a > 0x10000) {
            return Err(Malformed("alignment is not a power of two up to 64 KiB"));
        }
        let size_of_headers = u32at(opt + 60)?;
        let section_table = opt + optional_bytes;
        if size_of_headers as usize > image.len() || section_table + count * SECTION_HEADER > size_of_headers as usize {
            return Err(Malformed("section table lies outside the headers"));
        }
        let mut sections = Vec::with_capacity(count);
        for i in 0..count {
            let at = section_table + i * SECTION_HEADER;
            let raw_name = image.get(at..at + 8).ok_or(short.clone())?;
            let raw_name = raw_name.split(|b| *b == 0).next().unwrap_or_default();
            let s = Section {
                name: String::from_utf8_lossy(raw_name).into_owned(),
                virtual_size: u32at(at + 8)?,
                virtual_address: u32at(at + 12)?,
                raw_size: u32at(at + 16)?,
                raw_offset: u32at(at + 20)?,
            };
            if u64::from(s.raw_offset) + u64::from(s.raw_size) > image.len() as u64 {
                return Err(PeError::Section {
                    name: s.name,
                    what: "lies beyond the end of the file (file cut short?)",
                });
            }
            sections.push(s);
        }
        let certificates = (u32at(opt + 144)?, u32at(opt + 148)?);
        if u64::from(certificates.0) + u64::from(certificates.1) > image.len() as u64 {
            return Err(Malformed("certificate table lies beyond the end of the file"));
        }
        Ok(Pe {
            pe_offset: pe,
            size_of_headers,
            section_alignment,
            file_alignment,
            section_table,
            sections,
            certificates,
        })
    }

    /// The last section whose name is exactly `name`. (The stub, too, lets the last match win.)
    #[must_use]
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().rev().find(|s| s.name == name)
    }

    /// File offset of the CheckSum field.
    #[must_use]
    pub fn checksum_offset(&self) -> usize {
        self.pe_offset + 24 + 64
    }

    /// File offset of the certificate table's directory entry.
    #[must_use]
    pub fn certificate_entry_offset(&self) -> usize {
        self.pe_offset + 24 + 144
    }
}

/// `stub` with `sections` (name, data) appended in that order, at ascending addresses. `timestamp` goes to
/// TimeDateStamp; the checksum is zero, which firmware does not look at.
///
/// # Errors
/// A malformed or signed stub, a name longer than 8 bytes, no free section headers, or a result beyond 4 GiB.
pub fn append_sections(stub: &[u8], sections: &[(&str, &[u8])], timestamp: u32) -> Result<Vec<u8>, PeError> {
    let pe = Pe::parse(stub)?;
    if pe.certificates != (0, 0) {
        return Err(PeError::Signed);
    }
    let first = pe.sections.iter().map(|s| s.raw_offset).filter(|o| *o != 0).min().unwrap_or(pe.size_of_headers);
    let room = (pe.size_of_headers.min(first) as usize).saturating_sub(pe.section_table);
    let free = (room / SECTION_HEADER).saturating_sub(pe.sections.len());
    if sections.len() > free {
        return Err(PeError::NoRoom { free, wanted: sections.len() });
    }
    let (sect_align, file_align) = (u64::from(pe.section_alignment), u64::from(pe.file_alignment));
    let end =
        pe.sections.iter().map(|s| u64::from(s.virtual_address) + u64::from(s.virtual_size.max(s.raw_size))).max();
    let mut va = round_up(end.unwrap_or(u64::from(pe.size_of_headers)), sect_align);
    // The stub's COFF symbols lie behind its last section. Left there, they would be a gap between sections, which
    // Authenticode implementations hash in different ways; nothing needs them.
    let raw_end = pe.sections.iter().map(|s| s.raw_offset as usize + s.raw_size as usize).max();
    let mut out = stub[..raw_end.unwrap_or(0).max(pe.size_of_headers as usize)].to_vec();
    out[pe.pe_offset + 12..pe.pe_offset + 20].fill(0);
    out.resize(round_up(out.len() as u64, file_align) as usize, 0);
    let mut initialised = u64::from(le32(stub, pe.pe_offset + 32).unwrap_or_default());
    for (i, (name, data)) in sections.iter().enumerate() {
        let bad = |what| PeError::Section { name: (*name).into(), what };
        if name.is_empty() || name.len() > 8 {
            return Err(bad("name must have 1 to 8 bytes"));
        }
        let raw_size = round_up(data.len() as u64, file_align);
        let to32 = |v: u64| u32::try_from(v).map_err(|_| bad("image grows beyond 4 GiB"));
        let fields = [to32(data.len() as u64)?, to32(va)?, to32(raw_size)?, to32(out.len() as u64)?];
        let at = pe.section_table + (pe.sections.len() + i) * SECTION_HEADER;
        let header = &mut out[at..at + SECTION_HEADER];
        header.fill(0);
        header[..name.len()].copy_from_slice(name.as_bytes());
        for (k, v) in fields.iter().enumerate() {
            header[8 + 4 * k..12 + 4 * k].copy_from_slice(&v.to_le_bytes());
        }
        header[36..40].copy_from_slice(&CHARACTERISTICS.to_le_bytes());
        let len = out.len() + raw_size as usize;
        out.extend_from_slice(data);
        out.resize(len, 0);
        initialised += raw_size;
        va = round_up(va + data.len() as u64, sect_align);
    }
    let opt = pe.pe_offset + 24;
    let count = (pe.sections.len() + sections.len()) as u16;
    let image_size = u32::try_from(va).map_err(|_| PeError::Malformed("image grows beyond 4 GiB"))?;
    out[pe.pe_offset + 6..pe.pe_offset + 8].copy_from_slice(&count.to_le_bytes());
    out[pe.pe_offset + 8..pe.pe_offset + 12].copy_from_slice(&timestamp.to_le_bytes());
    out[opt + 8..opt + 12].copy_from_slice(&(initialised.min(u64::from(u32::MAX)) as u32).to_le_bytes());
    out[opt + 56..opt + 60].copy_from_slice(&image_size.to_le_bytes());
    out[opt + 64..opt + 68].fill(0);
    Ok(out)
}

/// Fuzz entry: a whole PE file.
#[doc(hidden)]
pub fn fuzz_pe(data: &[u8]) {
    if let Ok(pe) = Pe::parse(data) {
        pe.sections.iter().for_each(|s| assert!(s.data(data).len() <= data.len()));
        let _ = crate::authenticode::sha256(data);
        let _ = append_sections(data, &[(".x", b"y")], 0);
        let _ = crate::uki::predict_pcr11(data, &[]);
    }
}

/// A minimal unsigned PE32+ with one section, laid out as the stub is (alignment 0x200, headers 0x400): what tests build on,
/// and what fuzzing begins with.
#[doc(hidden)]
#[must_use]
pub fn tiny_pe() -> Vec<u8> {
    let mut b = vec![0u8; 0x600];
    b[..2].copy_from_slice(b"MZ");
    b[0x3c] = 0x80;
    b[0x80..0x84].copy_from_slice(b"PE\0\0");
    b[0x84..0x86].copy_from_slice(&0x8664u16.to_le_bytes());
    b[0x86] = 1;
    b[0x94] = 240;
    b[0x96..0x98].copy_from_slice(&0x22eu16.to_le_bytes());
    let opt = 0x98;
    b[opt..opt + 2].copy_from_slice(&0x20bu16.to_le_bytes());
    for (at, v) in [(8, 0x200u32), (16, 0x1000), (32, 0x200), (36, 0x200), (56, 0x1200), (60, 0x400), (108, 16)] {
        b[opt + at..opt + at + 4].copy_from_slice(&v.to_le_bytes());
    }
    b[opt + 68] = 10; // subsystem: EFI application
    let s = opt + 240;
    b[s..s + 5].copy_from_slice(b".text");
    for (k, v) in [0x180u32, 0x1000, 0x200, 0x400].iter().enumerate() {
        b[s + 8 + 4 * k..s + 12 + 4 * k].copy_from_slice(&v.to_le_bytes());
    }
    b
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn appended_sections_are_read_back_exactly() {
        let out = append_sections(&tiny_pe(), &[(".a", b"hello"), (".b", &[9; 0x201])], 42).unwrap();
        let pe = Pe::parse(&out).unwrap();
        assert_eq!(pe.section(".a").unwrap().data(&out), b"hello");
        assert_eq!(pe.section(".b").unwrap().data(&out), [9; 0x201]);
        let va: Vec<u32> = pe.sections.iter().map(|s| s.virtual_address).collect();
        assert_eq!(va, [0x1000, 0x1200, 0x1400]);
        assert_eq!(le32(&out, 0x98 + 56), Some(0x1800));
        assert_eq!(le32(&out, 0x88), Some(42));
        assert_eq!(out.len() % 0x200, 0);
    }

    #[test]
    fn a_full_section_table_is_named() {
        let many = [(".x", b"".as_slice()); 20];
        assert!(matches!(append_sections(&tiny_pe(), &many, 0), Err(PeError::NoRoom { wanted: 20, .. })));
    }

    #[test]
    fn a_truncated_image_is_refused() {
        let out = append_sections(&tiny_pe(), &[(".a", b"hello")], 0).unwrap();
        for n in [0, 1, 0x3d, 0x81, 0x100, 0x3ff, out.len() - 1] {
            assert!(Pe::parse(&out[..n]).is_err(), "{n}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn hostile_headers_do_not_panic(at in 0usize..0x400, value: u8, at2 in 0x80usize..0x200, value2: u8) {
            let mut b = tiny_pe();
            b[at] = value;
            b[at2] = value2;
            fuzz_pe(&b);
        }
    }
}
