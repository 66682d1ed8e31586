//! Foreign programs as second readers of what this crate writes. A program that is not installed is named on
//! stderr and its check is left out; the image build's package list contains all of them.

use holdfast_format::layout::{MIB, Part};
use holdfast_format::{cpio, fat, layout, verity};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};

/// Runs a tool; `None` (and a line saying so) when it is not there.
fn tool(name: &str, args: &[&str]) -> Option<Output> {
    match Command::new(name).args(args).output() {
        Ok(out) => Some(out),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("left out: {name} is not installed");
            None
        }
        Err(e) => panic!("{name}: {e}"),
    }
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}

#[test]
fn partx_and_sfdisk_read_the_partition_table() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    let table = layout::table(layout::image_bytes(0)).unwrap();
    let f = File::create(&disk).unwrap();
    f.set_len(table.disk_bytes).unwrap();
    for e in table.encode().unwrap() {
        f.write_all_at(&e.data, e.offset).unwrap();
    }
    if let Some(out) = tool("partx", &["--show", "--noheadings", "-o", "NR,START,SECTORS,NAME,UUID,TYPE", path(&disk)])
    {
        let out = text(&out);
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines.len(), Part::ALL.len(), "{out}");
        for (i, part) in Part::ALL.iter().enumerate() {
            let p = table.find(part.name()).unwrap();
            let want =
                format!("{} {} {} {} {} {}", i + 1, p.first_lba, p.size_bytes() / 512, p.name, p.guid, p.type_guid);
            assert_eq!(lines[i].split_whitespace().collect::<Vec<_>>().join(" "), want);
        }
    }
    if let Some(out) = tool("sfdisk", &["--verify", path(&disk)]) {
        assert!(text(&out).contains("No errors detected"), "{}", text(&out));
    }
}

#[test]
fn fsck_fat_and_mtools_accept_the_esp() {
    for volume in [128 * MIB, 16 * MIB] {
        let dir = tempfile::tempdir().unwrap();
        let (img, copy) = (dir.path().join("esp"), dir.path().join("copy"));
        let file: Vec<u8> = (0..5_000_001u32).map(|i| ((i * 7) >> 3) as u8).collect();
        let f = File::create(&img).unwrap();
        f.write_all_at(&fat::esp_image(volume, "ESP-A", &file).unwrap(), 0).unwrap();
        f.set_len(volume).unwrap();
        if let Some(out) = tool("fsck.fat", &["-n", "-v", path(&img)]) {
            assert!(out.status.success(), "{}", text(&out));
            assert!(text(&out).contains("4 files") || text(&out).contains("3 files"), "{}", text(&out));
        }
        if let Some(out) = tool("mcopy", &["-n", "-i", path(&img), "::EFI/BOOT/BOOTX64.EFI", path(&copy)]) {
            assert!(out.status.success(), "{}", text(&out));
            assert!(std::fs::read(&copy).unwrap() == file);
        }
    }
}

#[test]
fn veritysetup_computes_the_same_root_and_tree() {
    for blocks in [2u64, 129, 5000] {
        let dir = tempfile::tempdir().unwrap();
        let (data, tree) = (dir.path().join("data"), dir.path().join("tree"));
        let bytes: Vec<u8> = (0..blocks * 4096).map(|i| (i / 3 + i / 4096) as u8).collect();
        std::fs::write(&data, &bytes).unwrap();
        let ours = verity::build(&bytes[..]).unwrap();
        let salt = format!("--salt={}", hex::encode(verity::SALT));
        let Some(out) = tool("veritysetup", &["format", "--no-superblock", &salt, path(&data), path(&tree)]) else {
            return;
        };
        assert!(out.status.success(), "{}", text(&out));
        assert!(text(&out).contains(&hex::encode(ours.root.hash)), "{}", text(&out));
        assert!(std::fs::read(&tree).unwrap() == ours.bytes);
    }
}

#[test]
fn cpio_unpacks_the_archive() {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("a.cpio");
    let mut a = cpio::Archive::new();
    a.dir("dev", 0o755).char_device("dev/console", 0o600, 5, 1).file("init", 0o755, b"#!").symlink("link", "init");
    std::fs::write(&archive, a.finish()).unwrap();
    if let Some(out) =
        tool("sh", &["-c", &format!("command -v cpio >/dev/null || exit 99; cpio -itv < {}", path(&archive))])
    {
        if out.status.code() == Some(99) {
            eprintln!("left out: cpio is not installed");
            return;
        }
        let listing = text(&out);
        for want in ["crw-------", "-rwxr-xr-x", "link -> init"] {
            assert!(listing.contains(want), "{listing}");
        }
    }
}

#[cfg(feature = "build")]
#[test]
fn sbverify_accepts_our_signature_on_a_real_uki() {
    use holdfast_format::{authenticode, uki};
    let Ok(stub) = std::fs::read("/usr/lib/systemd/boot/efi/linuxx64.efi.stub") else {
        eprintln!("left out: systemd-boot-efi is not installed");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let p = |n: &str| dir.path().join(n).to_str().unwrap().to_owned();
    let (key, crt) = (p("key.pem"), p("crt.pem"));
    let args = [
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=throwaway",
        "-days",
        "2",
        "-keyout",
        &key,
        "-out",
        &crt,
    ];
    let Some(out) = tool("openssl", &args) else {
        return;
    };
    assert!(out.status.success(), "{}", text(&out));
    let unsigned = uki::Uki {
        stub: &stub,
        osrel: b"ID=holdfast\n",
        cmdline: "quiet",
        pcrpkey: b"key",
        pcrsig: b"sig",
        linux: &[0x5a; 100_001],
        initrd: &[0xa5; 777],
        timestamp: 0,
    }
    .build()
    .unwrap();
    let read = |f: &str| std::fs::read_to_string(f).unwrap();
    let signer = authenticode::Signer::from_pem(&read(&key), &read(&crt)).unwrap();
    let signed = signer.sign(&unsigned).unwrap();
    assert!(signed == signer.sign(&unsigned).unwrap(), "signing is deterministic");
    assert_eq!(authenticode::sha256(&signed).unwrap(), authenticode::sha256(&unsigned).unwrap());
    std::fs::write(p("good.efi"), &signed).unwrap();
    let Some(out) = tool("sbverify", &["--cert", &crt, &p("good.efi")]) else {
        return;
    };
    assert!(out.status.success() && text(&out).contains("Signature verification OK"), "{}", text(&out));
    assert!(!text(&out).contains("warning"), "{}", text(&out));
    // A changed byte inside the kernel, and sbsign agreeing on what a second signature would cover.
    let mut bad = signed.clone();
    let at = bad.len() / 2;
    bad[at] ^= 1;
    std::fs::write(p("bad.efi"), &bad).unwrap();
    assert!(!tool("sbverify", &["--cert", &crt, &p("bad.efi")]).unwrap().status.success());
}
