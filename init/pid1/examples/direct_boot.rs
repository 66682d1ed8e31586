//! Makes what QEMU needs to boot PID 1 without a whole image: a disk whose slots A (version 1.0) and B (0.9) hold one
//! program as `/bin/node`, unsigned UKIs for OVMF without Secure Boot, and an initramfs and command line for `-kernel`.
//!
//! `direct_boot OUT PID1 NODE BZIMAGE` writes `OUT/disk.img`, `OUT/initrd`, `OUT/cmdline`; then for example
//! `qemu-system-x86_64 -machine q35 -accel tcg -cpu EPYC -m 512 -nographic -no-reboot -kernel BZIMAGE
//! -initrd OUT/initrd -append "$(cat OUT/cmdline)" -drive file=OUT/disk.img,format=raw,if=virtio`.

use holdfast_format::layout::{self, Part};
use holdfast_format::uki::Uki;
use holdfast_format::{cpio, fat, pcr, uki, verity};
use holdfast_model::slot::Slot;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

/// Debian package systemd-boot-efi.
const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [out, pid1, node, kernel] = args.as_slice() else {
        eprintln!("usage: direct_boot OUT PID1 NODE BZIMAGE");
        std::process::exit(2);
    };
    let out = Path::new(out);
    let tree = out.join("tree");
    for folder in ["bin", "dev", "proc", "sys", "run", "tmp", "data"] {
        fs::create_dir_all(tree.join(folder)).unwrap();
    }
    fs::copy(node, tree.join("bin/node")).unwrap();
    let erofs = out.join("slot.erofs");
    let made = Command::new("mkfs.erofs").args(["--all-root", "-T0"]).arg(&erofs).arg(&tree).output().unwrap();
    assert!(made.status.success(), "mkfs.erofs: {}", String::from_utf8_lossy(&made.stderr));

    let mut slot = fs::read(&erofs).unwrap();
    slot.resize(slot.len().next_multiple_of(4096), 0);
    let hashes = verity::build(slot.as_slice()).unwrap();
    slot.extend(&hashes.bytes);

    let bytes = layout::image_bytes(0);
    let disk = File::create(out.join("disk.img")).unwrap();
    disk.set_len(bytes + (256 << 20)).unwrap();
    let table = layout::table(bytes).unwrap();
    for extent in table.encode().unwrap() {
        disk.write_all_at(&extent.data, extent.offset).unwrap();
    }
    let mut initrd = cpio::Archive::new();
    initrd.dir("dev", 0o755).char_device("dev/console", 0o600, 5, 1).file("init", 0o755, &fs::read(pid1).unwrap());
    let initrd = initrd.finish();
    fs::write(out.join("initrd"), &initrd).unwrap();
    let options = "console=ttyS0 loglevel=4 panic=10 oops=panic watchdog.open_timeout=60";
    for (which, version) in [(Slot::A, "1.0"), (Slot::B, "0.9")] {
        let root = hashes.root.to_cmdline();
        let cmdline = format!("{root} slot.version={version} slot.epoch=0 {options}");
        let image = Uki {
            stub: &fs::read(STUB).unwrap(),
            osrel: b"ID=holdfast\n",
            cmdline: &cmdline,
            pcrpkey: b"not a key",
            pcrsig: b"not a signature",
            linux: &fs::read(kernel).unwrap(),
            initrd: &initrd,
            timestamp: 0,
        };
        let image = image.build().unwrap();
        let esp = Part::esp(which);
        let fs_image = fat::esp_image(esp.size_bytes().unwrap(), "HOLDFAST", &image).unwrap();
        let at = |part: Part| table.find(part.name()).unwrap().offset_bytes();
        disk.write_all_at(&fs_image, at(esp)).unwrap();
        disk.write_all_at(&slot, at(Part::os(which))).unwrap();
        let pcr11 = uki::predict_pcr11(&image, &[pcr::phase::ENTER_PID1]).unwrap();
        let hex: String = pcr11.iter().map(|b| format!("{b:02X}")).collect();
        println!("slot {which}: {version}, PCR 11 after enter-pid1: {hex}");
        println!("  OS partition at byte {}", at(Part::os(which)));
        if which == Slot::A {
            fs::write(out.join("cmdline"), cmdline).unwrap();
        }
    }
}
