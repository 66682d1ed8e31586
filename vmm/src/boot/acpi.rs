//! ACPI tables: RSDP, XSDT, FADT, MADT, MCFG, DSDT, in one block of bytes.
#![forbid(unsafe_code)]

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};

use super::{ACPI_END, ACPI_START};
use crate::memory::{ECAM, PCI_WINDOW};
use crate::pci::bus::SLOTS;
use crate::platform::{power, serial};

const OEM_ID: [u8; 6] = *b"HOLDFS";
const TABLE_ID: [u8; 8] = *b"HOLDFAST";
const IOAPIC_ADDRESS: u32 = 0xFEC0_0000;
const LAPIC_ADDRESS: u32 = 0xFEE0_0000;
/// First IO-APIC pin for PCI interrupts; device n uses pin 16 + n % 8.
const PCI_GSI: u32 = 16;

/// IO-APIC pin of a PCI device's INTA.
pub fn pci_gsi(device: usize) -> u32 {
    PCI_GSI + (device % 8) as u32
}

/// What the tables describe beside what every VM has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Platform {
    /// vCPUs.
    pub vcpus: u8,
    /// There is a 16550 at COM1.
    pub serial_port: bool,
    /// Configuration space is also reached by ports 0xCF8 to 0xCFF.
    pub pci_ports: bool,
    /// The kernel calibrates its timer. The power management timer then spares it a second measurement of 100 ms, by which it
    /// would check the first; to others it is a clock they do not need, and whose probing costs exits.
    pub calibrates: bool,
}

/// The tables for a VM, to be placed at [`ACPI_START`].
///
/// # Panics
/// When the tables outgrow their area: their size is bounded by the bounded number of vCPUs.
pub fn tables(platform: Platform) -> Vec<u8> {
    let vcpus = platform.vcpus;
    // The RSDP comes first; the rest follows in the order of reference.
    let mut block = vec![0u8; 64];
    let mut place = |table: &[u8]| {
        let at = block.len().next_multiple_of(16);
        block.resize(at, 0);
        block.extend_from_slice(table);
        ACPI_START + at as u64
    };
    let dsdt = place(dsdt(platform).as_slice());
    let fadt = place(&bytes(&fadt(dsdt, platform)));
    let madt = place(madt(vcpus).as_slice());
    let mut mcfg = MCFG::new(OEM_ID, TABLE_ID, 1);
    mcfg.add_ecam(ECAM.0, 0, 0, 0);
    let mcfg = place(&bytes(&mcfg));
    let mut xsdt = XSDT::new(OEM_ID, TABLE_ID, 1);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = place(&bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM_ID, xsdt));
    block[..rsdp.len()].copy_from_slice(&rsdp);
    assert!(ACPI_START + block.len() as u64 <= ACPI_END, "ACPI tables are too large");
    block
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64, Platform { serial_port, calibrates, .. }: Platform) -> acpi_tables::fadt::FADT {
    let port = |offset: u16| u32::from(power::BASE + offset);
    let io = |offset: u16, bits: u8, size| GAS::new(GasSpace::SystemIo, bits, 0, size, port(offset).into());
    let mut fadt = FADTBuilder::new(OEM_ID, TABLE_ID, 1)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // Bits that are set say what there is not: no sleep button, no RTC wake-up.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    fadt.sci_int = u16::from(power::SCI).into();
    fadt.pm1a_evt_blk = port(power::PM1_EVENT).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = port(power::PM1_CONTROL).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_evt_blk = io(power::PM1_EVENT, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = io(power::PM1_CONTROL, 16, AccessSize::WordAccess);
    if calibrates {
        fadt.pm_tmr_blk = port(power::TIMER).into();
        fadt.pm_tmr_len = 4;
        fadt.x_pm_tmr_blk = io(power::TIMER, 32, AccessSize::DwordAccess);
    }
    fadt.reset_reg = io(power::RESET, 8, AccessSize::ByteAccess);
    fadt.reset_value = power::RESET_VALUE;
    // C2 and C3 do not exist.
    fadt.p_lvl2_lat = 0xffff.into();
    fadt.p_lvl3_lat = 0xffff.into();
    // IAPC_BOOT_ARCH: legacy devices only with the serial port; no 8042, no VGA, no CMOS RTC: nothing to probe.
    fadt.iapc_boot_arch = (u16::from(serial_port) | 1 << 2 | 1 << 5).into();
    fadt.finalize()
}

/// MADT: local APICs, the IO-APIC, the SCI as level-triggered active-high, LINT1 as NMI (ACPI 6.5 §5.2.12).
fn madt(vcpus: u8) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", 44, 5, OEM_ID, TABLE_ID, 1);
    madt.write_u32(36, LAPIC_ADDRESS);
    // Flags: there is a legacy PIC pair as well.
    madt.write_u32(40, 1);
    for id in 0..vcpus {
        madt.append_slice(&[0, 8, id, id, 1, 0, 0, 0]);
    }
    let mut ioapic = vec![1u8, 12, 0, 0];
    ioapic.extend(IOAPIC_ADDRESS.to_le_bytes());
    ioapic.extend(0u32.to_le_bytes());
    madt.append_slice(&ioapic);
    madt.append_slice(&[2, 10, 0, power::SCI, power::SCI, 0, 0, 0, 0x0d, 0]);
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    madt
}

fn dsdt(Platform { serial_port, pci_ports, .. }: Platform) -> Sdt {
    let mut body = Vec::new();
    let (window, last) = (PCI_WINDOW.0 as u32, (PCI_WINDOW.0 + PCI_WINDOW.1 - 1) as u32);
    // _PRT: device n, any function, INTA..INTD -> its own IO-APIC pin; no link devices.
    let routes: Vec<_> = (1..SLOTS).map(|device| ((device as u32) << 16 | 0xffff, pci_gsi(device))).collect();
    let packages: Vec<Package<'_>> =
        routes.iter().map(|(address, gsi)| Package::new(vec![address, &aml::ZERO, &aml::ZERO, gsi])).collect();
    let prt = Package::new(packages.iter().map(|p| p as &dyn Aml).collect());
    let bus = AddressSpace::new_bus_number(0u16, 0u16);
    let config_ports = IO::new(0xcf8, 0xcf8, 1, 8);
    let bars = AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, window, last, None);
    let resources: Vec<&dyn Aml> = if pci_ports { vec![&bus, &config_ports, &bars] } else { vec![&bus, &bars] };
    let names = [
        Name::new(Path::new("_HID"), &EISAName::new("PNP0A03")),
        Name::new(Path::new("_UID"), &aml::ZERO),
        Name::new(Path::new("_BBN"), &aml::ZERO),
        Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources)),
        Name::new(Path::new("_PRT"), &prt),
    ];
    device("PCI0", &names, &mut body);
    // A kernel trusts the MCFG only when motherboard resources hold its range (PCI Firmware 3.3 §4.1.2).
    let ecam = Memory32Fixed::new(true, ECAM.0 as u32, ECAM.1 as u32);
    let names = [
        Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
        Name::new(Path::new("_UID"), &aml::ZERO),
        Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ecam])),
    ];
    device("ECAM", &names, &mut body);
    if serial_port {
        let interrupt = Interrupt::new(true, true, false, false, serial::IRQ.into());
        let ports = IO::new(serial::BASE, serial::BASE, 0, serial::LEN as u8);
        let names = [
            Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            Name::new(Path::new("_UID"), &aml::ZERO),
            Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&interrupt, &ports])),
        ];
        device("COM1", &names, &mut body);
    }
    let sleep_type = power::SLEEP_TYPE_S5 as u8;
    let s5 = Package::new(vec![&sleep_type, &aml::ZERO, &aml::ZERO, &aml::ZERO]);
    Name::new(Path::new("_S5_"), &s5).to_aml_bytes(&mut body);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM_ID, TABLE_ID, 1);
    dsdt.append_slice(&body);
    dsdt
}

/// A device below the system bus.
fn device(name: &str, names: &[Name], body: &mut Vec<u8>) {
    let device = Device::new(Path::new(name), names.iter().map(|name| name as &dyn Aml).collect());
    Scope::new(Path::new("\\_SB_"), vec![&device]).to_aml_bytes(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte))
    }

    fn table(block: &[u8], address: u64) -> &[u8] {
        let at = (address - ACPI_START) as usize;
        let len = u32::from_le_bytes(block[at + 4..at + 8].try_into().unwrap()) as usize;
        &block[at..at + len]
    }

    fn address(bytes: &[u8]) -> u64 {
        u64::from_le_bytes(bytes[..8].try_into().unwrap())
    }

    #[test]
    fn every_table_is_reachable_and_its_checksum_is_zero() {
        for (vcpus, wide) in [(1, false), (64, true)] {
            let block = tables(Platform { vcpus, serial_port: wide, pci_ports: wide, calibrates: wide });
            assert_eq!((&block[..8], sum(&block[..20]), sum(&block[..36])), (&b"RSD PTR "[..], 0, 0));
            let xsdt = table(&block, address(&block[24..]));
            assert_eq!(sum(xsdt), 0);
            let mut names = Vec::new();
            for entry in xsdt[36..].chunks(8) {
                let table = table(&block, address(entry));
                assert_eq!(sum(table), 0);
                names.push(String::from_utf8_lossy(&table[..4]).into_owned());
                if table.starts_with(b"FACP") {
                    // PM_TMR_BLK, PM_TMR_LEN (ACPI 6.5 §5.2.9).
                    let timer = u32::from(power::BASE + power::TIMER).to_le_bytes();
                    assert_eq!(table[76..80], if wide { timer } else { [0; 4] });
                    assert_eq!(table[91], if wide { 4 } else { 0 });
                    let dsdt = super::tests::table(&block, address(&table[140..]));
                    assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
                }
            }
            assert_eq!(names, ["FACP", "APIC", "MCFG"]);
        }
    }

    #[test]
    fn ecam_is_reserved_and_ports_are_named_only_where_they_answer() {
        let has = |table: &Sdt, needle: &[u8]| table.as_slice().windows(needle.len()).any(|window| window == needle);
        let mut range = vec![0x86, 9, 0, 1];
        range.extend((ECAM.0 as u32).to_le_bytes());
        range.extend((ECAM.1 as u32).to_le_bytes());
        for pci_ports in [false, true] {
            let dsdt = dsdt(Platform { vcpus: 1, serial_port: false, pci_ports, calibrates: false });
            assert!(has(&dsdt, &range));
            // An I/O port descriptor (ACPI 6.5 §6.4.2.5) for 0xCF8, 8 ports.
            assert_eq!(has(&dsdt, &[0x47, 1, 0xf8, 0x0c, 0xf8, 0x0c, 1, 8]), pci_ports);
        }
    }

    #[test]
    fn madt_lists_each_vcpu() {
        let madt = madt(3);
        let lapics = madt.as_slice()[44..].chunks(8).take_while(|entry| entry[0] == 0).count();
        assert_eq!(lapics, 3);
    }
}
