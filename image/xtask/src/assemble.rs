//! From programs and kernels to the artefacts of one version: disk image, update payload, SBOM, sizes.

use crate::kernel::KernelArtifacts;
use crate::keys::Keys;
use crate::programs::{Programs, libraries};
use crate::workspace::run;
use anyhow::{Context, Result, bail};
use holdfast_format::layout::{self, Part};
use holdfast_format::release::{Kind, PRODUCT, Release};
use holdfast_format::{
    authenticode::Signer, cpio, fat, payload, pcr, pe, policy::SignedPolicies, site, uki, uki::Uki, verity,
};
use holdfast_model::slot::Slot;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The clock of a build (SOURCE_DATE_EPOCH): 1 January 2025.
pub const BUILD_TIME: u32 = 1_735_689_600;
/// systemd-stub 252, Debian package systemd-boot-efi.
const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";
/// Fixed file system UUID of the slot and the seed.
const FS_UUID: &str = "8f1d7a52-6f6c-5d0e-9a55-686f6c646661";
/// Size of the ext4 seed.
const SEED_BYTES: &str = "64M";
/// Libraries loaded by name at run time, which `ldd` does not see.
const RUNTIME_LIBRARIES: &[&str] = &["/usr/lib/x86_64-linux-gnu/libtss2-tcti-device.so.0"];
/// The kernel's options. `panic=10` with `oops=panic` turns every kernel fault into a restart, which the slots then judge.
const KERNEL_OPTIONS: &str = "console=tty0 console=ttyS0 loglevel=4 panic=10 oops=panic slab_nomerge randomize_kstack_offset=on vsyscall=none watchdog.open_timeout=60 bonding.max_bonds=0 dummy.numdummies=0";

/// What one version is made from.
pub struct Inputs<'a> {
    /// Version text.
    pub version: &'a str,
    /// Security epoch.
    pub epoch: u32,
    /// Keys.
    pub keys: &'a Keys,
    /// Programs.
    pub programs: &'a Programs,
    /// Host kernel.
    pub host: &'a KernelArtifacts,
    /// Guest kernel.
    pub guest: &'a KernelArtifacts,
    /// SITE document, when the image is to carry one.
    pub site: Option<&'a site::Site>,
}

/// The artefacts of one version.
#[derive(Debug, Clone)]
pub struct Artefacts {
    /// Raw disk.
    pub image: PathBuf,
    /// Update payload.
    pub update: PathBuf,
    /// Sizes in bytes by name, for the table and the budgets.
    pub sizes: BTreeMap<String, u64>,
}

/// Makes all artefacts of a version in `out`; each appears by one rename.
///
/// # Errors
/// A missing tool or file, a full disk, a slot that is too large: named.
pub fn assemble(inputs: &Inputs<'_>, out: &Path, progress: &dyn Fn(&str)) -> Result<Artefacts> {
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let work = tempfile::Builder::new().prefix(".assemble-").tempdir_in(out)?;
    let mut sizes = BTreeMap::new();

    progress("slot: programs, libraries, guest kernel into erofs");
    let tree = work.path().join("slot");
    stage_slot(inputs, &tree, work.path())?;
    let erofs = work.path().join("slot.erofs");
    run(Command::new("mkfs.erofs")
        .args(["-zlz4hc", "-T", &BUILD_TIME.to_string(), "-U", FS_UUID, "--all-root"])
        .arg(&erofs)
        .arg(&tree))?;
    let data_bytes = fs::metadata(&erofs)?.len().next_multiple_of(verity::BLOCK);
    OpenOptions::new().write(true).open(&erofs)?.set_len(data_bytes)?;
    let hashes = verity::build(File::open(&erofs)?)?;
    let mut slot = fs::read(&erofs)?;
    slot.extend_from_slice(&hashes.bytes);
    fit("OS slot", slot.len() as u64, Part::os(Slot::A).size_bytes())?;

    progress("UKI: kernel and PID 1, PCR 11 predicted and signed");
    let uki = build_uki(inputs, &hashes.root)?;
    let esp = fat::esp_image(esp_bytes(), "HOLDFAST", &uki)?;

    sizes.insert("uki".into(), uki.len() as u64);
    sizes.insert("os-slot".into(), slot.len() as u64);
    sizes.insert("os-slot-host".into(), host_share(&tree, slot.len() as u64, work.path())?);
    sizes.insert("guest-kernel".into(), fs::metadata(&inputs.guest.vmlinux)?.len());
    for (name, path) in [
        ("pid1", &inputs.programs.pid1),
        ("node", &inputs.programs.node),
        ("vmm", &inputs.programs.vmm),
        ("netsvc", &inputs.programs.netsvc),
        ("fetch", &inputs.programs.fetch),
        ("guest-init", &inputs.programs.guest_init),
    ] {
        sizes.insert(name.into(), fs::metadata(path)?.len());
    }

    progress("disk image");
    let image = out.join(format!("holdfast-{}.img", inputs.version));
    let new = work.path().join("disk");
    write_disk(&new, &esp, &slot, inputs.site)?;
    fs::rename(&new, &image)?;

    progress("update payload");
    let update = out.join(format!("holdfast-{}.update", inputs.version));
    let new = work.path().join("payload");
    write_payload(&new, &release(inputs), &esp, &slot, inputs.keys)?;
    sizes.insert("update".into(), fs::metadata(&new)?.len());
    fs::rename(&new, &update)?;
    Ok(Artefacts { image, update, sizes })
}

fn esp_bytes() -> u64 {
    Part::esp(Slot::A).size_bytes().unwrap_or_default()
}

fn fit(what: &str, bytes: u64, room: Option<u64>) -> Result<()> {
    if room.is_some_and(|r| bytes > r) {
        bail!("{what} has {bytes} bytes, but its partition only {}", room.unwrap_or_default());
    }
    Ok(())
}

/// What the slot would take without the container guest's kernel: the budget of the design speaks of that.
fn host_share(tree: &Path, slot_bytes: u64, work: &Path) -> Result<u64> {
    let guest = work.join("guest.erofs");
    run(Command::new("mkfs.erofs")
        .args(["-zlz4hc", "-T", &BUILD_TIME.to_string(), "-U", FS_UUID, "--all-root"])
        .arg(&guest)
        .arg(tree.join("guest")))?;
    Ok(slot_bytes.saturating_sub(fs::metadata(&guest)?.len()))
}

/// The slot's tree.
fn stage_slot(inputs: &Inputs<'_>, tree: &Path, work: &Path) -> Result<()> {
    for folder in ["bin", "etc/holdfast", "guest", "share", "dev", "proc", "sys", "run", "tmp", "data"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    let programs = inputs.programs;
    for (name, source) in
        [("node", &programs.node), ("fetch", &programs.fetch), ("netsvc", &programs.netsvc), ("vmm", &programs.vmm)]
    {
        install(source, &tree.join("bin").join(name), 0o755)?;
    }
    let mut needed: Vec<PathBuf> = RUNTIME_LIBRARIES.iter().map(PathBuf::from).collect();
    for program in [programs.node.as_path(), programs.fetch.as_path(), Path::new(RUNTIME_LIBRARIES[0])] {
        needed.extend(libraries(program)?);
    }
    needed.sort();
    needed.dedup();
    for library in needed {
        let path = library.strip_prefix("/usr").unwrap_or_else(|_| library.strip_prefix("/").unwrap_or(&library));
        install(&library, &tree.join(path), 0o755)?;
    }
    install(&inputs.guest.vmlinux, &tree.join("guest/vmlinux"), 0o444)?;
    let mut initrd = cpio::Archive::new();
    initrd.dir("dev", 0o755).char_device("dev/console", 0o600, 5, 1).file(
        "init",
        0o755,
        &fs::read(&programs.guest_init)?,
    );
    fs::write(tree.join("guest/initrd"), initrd.finish())?;
    seed(&tree.join("share/seed.ext4"), work)?;
    fs::write(tree.join("etc/holdfast/release"), release(inputs).encode())?;
    fs::write(tree.join("etc/nsswitch.conf"), "hosts: files dns\n")?;
    for name in ["resolv.conf", "hosts"] {
        symlink(format!("/run/{name}"), tree.join("etc").join(name))?;
    }
    Ok(())
}

fn release(inputs: &Inputs<'_>) -> Release {
    Release {
        product: PRODUCT.into(),
        version: inputs.version.into(),
        epoch: inputs.epoch,
        kind: if inputs.keys.development { Kind::Dev } else { Kind::Release },
    }
}

/// Copies the content (not the owner or time) with a fixed mode.
fn install(from: &Path, to: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(to.parent().unwrap_or(to))?;
    fs::write(to, fs::read(from).with_context(|| format!("cannot read {}", from.display()))?)?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// The ext4 seed: small, empty, the same bytes at every build.
fn seed(path: &Path, work: &Path) -> Result<()> {
    let config = work.join("mke2fs.conf");
    fs::write(
        &config,
        "[defaults]\n\tbase_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr\n\tblocksize = 4096\n\tinode_size = 256\n\tinode_ratio = 16384\n[fs_types]\n\text4 = {\n\t\tfeatures = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize\n\t}\n",
    )?;
    File::create(path)?;
    run(Command::new("mke2fs")
        .env("MKE2FS_CONFIG", &config)
        .env("E2FSPROGS_FAKE_TIME", BUILD_TIME.to_string())
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-m",
            "0",
            "-b",
            "4096",
            "-U",
            FS_UUID,
            "-E",
            &format!("hash_seed={FS_UUID},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard"),
        ])
        .arg(path)
        .arg(SEED_BYTES))?;
    Ok(())
}

/// The signed UKI.
fn build_uki(inputs: &Inputs<'_>, root: &verity::Root) -> Result<Vec<u8>> {
    let stub = read_stub()?;
    let linux = fs::read(&inputs.host.bzimage)?;
    let mut initrd = cpio::Archive::new();
    initrd.dir("dev", 0o755).char_device("dev/console", 0o600, 5, 1).file(
        "init",
        0o755,
        &fs::read(&inputs.programs.pid1)?,
    );
    let initrd = initrd.finish();
    let cmdline =
        format!("{} slot.version={} slot.epoch={} {KERNEL_OPTIONS}", root.to_cmdline(), inputs.version, inputs.epoch);
    let osrel = format!("ID=holdfast\nNAME=Holdfast\nVERSION_ID={0}\nPRETTY_NAME=\"Holdfast {0}\"\n", inputs.version);
    seal_uki(
        Uki {
            stub: &stub,
            osrel: osrel.as_bytes(),
            cmdline: &cmdline,
            pcrpkey: &[],
            pcrsig: &[],
            linux: &linux,
            initrd: &initrd,
            timestamp: BUILD_TIME,
        },
        inputs.epoch,
        inputs.keys,
    )
}

/// The same UKI under other keys: what a version is whose release key was rotated. The OS slot that its command line names stays as it is.
///
/// # Errors
/// Not a UKI of ours, or a missing stub.
pub fn rekey_uki(signed: &[u8], epoch: u32, keys: &Keys) -> Result<Vec<u8>> {
    let parsed = pe::Pe::parse(signed)?;
    let section = |name: &str| {
        parsed.section(name).map(|s| s.data(signed)).with_context(|| format!("not a UKI of ours: no section {name}"))
    };
    let stub = read_stub()?;
    let cmdline = uki::cmdline(signed)?;
    let unsigned = Uki {
        stub: &stub,
        osrel: section(".osrel")?,
        cmdline: &cmdline,
        pcrpkey: &[],
        pcrsig: &[],
        linux: section(".linux")?,
        initrd: section(".initrd")?,
        timestamp: BUILD_TIME,
    };
    seal_uki(unsigned, epoch, keys)
}

fn read_stub() -> Result<Vec<u8>> {
    fs::read(STUB).with_context(|| format!("cannot read {STUB}: install package systemd-boot-efi"))
}

/// Adds the release's policy key, its signature over the PCR 11 of this UKI, and the Secure Boot signature.
fn seal_uki(uki: Uki<'_>, epoch: u32, keys: &Keys) -> Result<Vec<u8>> {
    let unsigned = Uki { pcrpkey: keys.release_public_pem.as_bytes(), ..uki };
    // The signature is not measured, so PCR 11 can be predicted without it and signed into it.
    let pcr11 = uki::predict_pcr11(&unsigned.build()?, &[pcr::phase::ENTER_PID1])?;
    let signed = SignedPolicies::sign(&pcr11, epoch, &keys.release).encode();
    let whole = Uki { pcrsig: &signed, ..unsigned }.build()?;
    let signer = Signer::from_pem(&keys.secure_boot_key, &keys.secure_boot_certificate)?;
    Ok(signer.sign(&whole)?)
}

/// The raw disk: slot A filled, slot B and STATE empty, SITE as given. Holes stay holes.
fn write_disk(path: &Path, esp: &[u8], slot: &[u8], site: Option<&site::Site>) -> Result<()> {
    let bytes = layout::image_bytes(layout::DATA_MIN);
    let table = layout::table(bytes)?;
    let file = File::create(path)?;
    file.set_len(bytes)?;
    for extent in table.encode()? {
        file.write_all_at(&extent.data, extent.offset)?;
    }
    let mut parts: Vec<(Part, Vec<u8>)> = vec![(Part::esp(Slot::A), esp.to_vec()), (Part::os(Slot::A), slot.to_vec())];
    if let Some(site) = site {
        parts.push((Part::Site, site.encode()?));
    }
    for (part, data) in parts {
        let Some(place) = table.find(part.name()) else { bail!("layout without {}", part.name()) };
        fit(part.name(), data.len() as u64, Some(place.size_bytes()))?;
        for (n, chunk) in data.chunks(1 << 16).enumerate() {
            if chunk.iter().any(|b| *b != 0) {
                file.write_all_at(chunk, place.offset_bytes() + (n as u64) * (1 << 16))?;
            }
        }
    }
    file.sync_all()?;
    Ok(())
}

/// Writes an update payload: a slot's UKI and OS, in the name of a release.
///
/// # Errors
/// A full disk, or images that no device would take.
pub fn write_update(path: &Path, release: &Release, uki: &[u8], slot: &[u8], keys: &Keys) -> Result<()> {
    let esp = fat::esp_image(esp_bytes(), "HOLDFAST", uki)?;
    write_payload(path, release, &esp, slot, keys)
}

fn write_payload(path: &Path, release: &Release, esp: &[u8], slot: &[u8], keys: &Keys) -> Result<()> {
    let mut file = std::io::BufWriter::new(File::create(path)?);
    payload::write(&mut file, release, payload::Images { os: slot, esp }, &keys.release)?;
    std::io::Write::flush(&mut file)?;
    file.get_ref().sync_all()?;
    Ok(())
}
