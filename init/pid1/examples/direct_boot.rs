//! Makes what QEMU needs to boot PID 1 directly (`-kernel`, no firmware): a disk with the layout whose slot A holds
//! one program as `/bin/node`, an initramfs, and the command line. For trying PID 1 without building an image.
//!
//! `direct_boot OUT PID1 NODE` writes `OUT/disk.img`, `OUT/initrd`, `OUT/cmdline`; then for example
//! `qemu-system-x86_64 -machine q35 -accel tcg -cpu EPYC -m 512 -nographic -no-reboot -kernel bzImage
//! -initrd OUT/initrd -append "$(cat OUT/cmdline)" -drive file=OUT/disk.img,format=raw,if=virtio`.

use holdfast_format::layout::{self, Part};
use holdfast_format::{cpio, verity};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [out, pid1, node] = args.as_slice() else {
        eprintln!("usage: direct_boot OUT PID1 NODE");
        std::process::exit(2);
    };
    let out = Path::new(out);
    let tree = out.join("tree");
    for folder in ["bin", "dev", "proc", "sys", "run", "tmp", "data"] {
        fs::create_dir_all(tree.join(folder)).unwrap();
    }
    fs::copy(node, tree.join("bin/node")).unwrap();
    let erofs = out.join("slot.erofs");
    let made = Command::new("mkfs.erofs")
        .args(["--all-root", "-T0"])
        .arg(&erofs)
        .arg(&tree)
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "mkfs.erofs: {}",
        String::from_utf8_lossy(&made.stderr)
    );

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
    disk.write_all_at(&slot, table.find(Part::OsA.name()).unwrap().offset_bytes())
        .unwrap();

    let mut initrd = cpio::Archive::new();
    initrd
        .dir("dev", 0o755)
        .char_device("dev/console", 0o600, 5, 1)
        .file("init", 0o755, &fs::read(pid1).unwrap());
    fs::write(out.join("initrd"), initrd.finish()).unwrap();
    let options = "console=ttyS0 loglevel=4 panic=10 oops=panic watchdog.open_timeout=60";
    let cmdline = format!(
        "{} slot.version=1.0 slot.epoch=0 {options}",
        hashes.root.to_cmdline()
    );
    fs::write(out.join("cmdline"), cmdline).unwrap();
}
