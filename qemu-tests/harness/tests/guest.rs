//! A container guest, whole: guest kernel, guest init, an image on erofs, an overlay, a volume, a network.
//!
//! Wrong way to see it: looking into the guest by a shell or agent that the product does not have. What the app prints, what it answers, what
//! the disks hold afterwards and the exit line are what the host sees as well.

use holdfast_format::cpio::Archive;
use holdfast_harness::{Device, Disk, Nic, secs};
use holdfast_model::contract::Version;
use holdfast_model::contract::guest::{AppDocument, Mount};
use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

fn run(program: &str, args: &[&dyn AsRef<std::ffi::OsStr>]) {
    let output = Command::new(program)
        .args(args.iter().map(AsRef::as_ref))
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Path of the static guest init: `$HOLDFAST_GUEST_INIT`, or built now.
fn guest_init() -> PathBuf {
    std::env::var_os("HOLDFAST_GUEST_INIT").map_or_else(|| xtask::programs::build().unwrap().guest_init, PathBuf::from)
}

/// What all tests share: kernel, initramfs, image.
struct Parts {
    folder: tempfile::TempDir,
    kernel: PathBuf,
}

fn parts() -> &'static Parts {
    static PARTS: OnceLock<Parts> = OnceLock::new();
    PARTS.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut archive = Archive::new();
        archive.dir("dev", 0o755).char_device("dev/console", 0o600, 5, 1);
        archive.file("init", 0o755, &fs::read(guest_init()).unwrap());
        fs::write(at("initrd"), archive.finish()).unwrap();

        let image = at("image");
        for dir in ["bin", "usr/etc", "home/app", "srv/volume"] {
            fs::create_dir_all(image.join(dir)).unwrap();
        }
        symlink("/usr/etc", image.join("etc")).unwrap();
        symlink("../run/nowhere/resolv.conf", image.join("usr/etc/resolv.conf")).unwrap();
        fs::write(image.join("usr/etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")
            .unwrap();
        fs::write(image.join("usr/etc/group"), "root:x:0:\napp:x:1000:\nextra:x:2000:app\n").unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/probe/app.rs");
        let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
        run(
            &rustc,
            &[
                &"--edition=2024",
                &"-O",
                &"-C",
                &"target-feature=+crt-static",
                &"-C",
                &"panic=abort",
                &"-o",
                &image.join("bin/app"),
                &source,
            ],
        );
        run("mkfs.erofs", &[&"-T0", &"--force-uid=0", &"--force-gid=0", &at("image.erofs"), &image]);
        let kernel = xtask::kernel::build(xtask::kernel::Kernel::Guest, &|line| eprintln!("{line}")).unwrap().vmlinux;
        Parts { folder, kernel }
    })
}

fn document(argv: &[&str]) -> AppDocument {
    AppDocument {
        version: Version,
        hostname: "web".into(),
        argv: argv.iter().map(|a| (*a).to_owned()).collect(),
        env: vec!["COLOUR=green".into(), "COLOUR=blue".into()],
        user: String::new(),
        cwd: String::new(),
        stop_signal: String::new(),
        grace_seconds: 5,
        mounts: vec![],
    }
}

/// A guest with fresh overlay and volume: 64 MiB disks that hold 8 MiB file systems.
struct Guest {
    device: Device,
    folder: tempfile::TempDir,
}

impl Guest {
    fn new(name: &str, document: &AppDocument) -> Self {
        let parts = parts();
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut config = serde_json::to_vec(document).unwrap();
        config.resize(config.len().next_multiple_of(4096), 0);
        fs::write(at("config"), config).unwrap();
        for disk in ["overlay", "vol0"] {
            run("mke2fs", &[&"-q", &"-t", &"ext4", &"-F", &at(disk), &"8M"]);
            fs::File::options().write(true).open(at(disk)).unwrap().set_len(64 << 20).unwrap();
        }
        let device = Device::builder(name)
            .direct(&parts.kernel, Some(parts.folder.path().join("initrd")), "console=hvc0 quiet panic=-1")
            .memory_mib(192)
            .cpus(1)
            .watchdog(false)
            .hvc()
            .no_reboot()
            .nic(Nic::user().forward(80))
            .disk(Disk::new(at("config"), "config").read_only())
            .disk(Disk::new(parts.folder.path().join("image.erofs"), "rootfs").read_only())
            .disk(Disk::new(at("vol0"), "vol0"))
            .disk(Disk::new(at("overlay"), "overlay"))
            .build()
            .unwrap();
        Self { device, folder }
    }

    /// Runs it to its end: all it said.
    fn run(&mut self) -> String {
        self.device.power_on().unwrap();
        self.device.wait_off(secs(60)).unwrap();
        let text = self.device.hvc().text();
        eprintln!("{text}");
        text
    }

    /// The disk's file system was left clean, and fills the disk.
    fn check_disk(&self, name: &str) {
        let disk = self.folder.path().join(name);
        run("e2fsck", &[&"-fn", &disk]);
        let output = Command::new("dumpe2fs").arg("-h").arg(&disk).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim().to_owned();
        assert_eq!(field("Filesystem state:"), "clean", "{name}");
        let bytes = field("Block count:").parse::<u64>().unwrap() * field("Block size:").parse::<u64>().unwrap();
        assert_eq!(bytes, 64 << 20, "{name}");
        assert!(!text.contains("needs_recovery"), "{name}: was not unmounted");
    }
}

/// How the guest's init says that it ended: class and sentence, as the VMM is told.
fn end(device: &Device) -> String {
    device.guest_end().trim_end().to_owned()
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}

/// What a web server says, asked until it says something.
fn answer(address: SocketAddr, timeout: Duration) -> String {
    let started = Instant::now();
    let mut text = String::new();
    while text.is_empty() && started.elapsed() < timeout {
        if let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
            stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let _ = stream.read_to_string(&mut text);
        }
    }
    text
}

#[test]
fn an_app_finds_an_ordinary_container_and_its_end_is_reported_last() {
    let mut guest = Guest::new(
        "guest-facts",
        &AppDocument {
            cwd: "/home/app/made/here".into(),
            mounts: vec![Mount { disk: "vol0".into(), at: "/srv/volume".into(), read_only: false }],
            ..document(&["app", "facts", "second argument"])
        },
    );
    let text = guest.run();
    for expected in [
        "fact: boots 0",
        "fact: cwd /home/app/made/here",
        "fact: args facts|second argument",
        "fact: env-COLOUR blue",
        "fact: env-HOSTNAME web",
        "fact: env-HOME /root",
        "fact: id Uid: 0 0 0 0",
        "fact: writable-/srv/volume/file true",
        "fact: writable-/tmp/file true",
        "fact: writable-/dev/shm/file true",
        "fact: writable-/etc/file true",
        "fact: /etc/hostname web;",
        "fact: /etc/resolv.conf nameserver 10.0.2.3;",
        "10.0.2.15\tweb;",
        "fact: devices fd,full,fuse,mqueue,net,null,ptmx,pts,random,shm,stderr,stdin,stdout,tty,urandom,zero",
        "fact: reopened true",
        "fact: stderr true",
        "holdfast-guest: eth0: 10.0.2.15/24",
        "fact: unfinished line\n",
    ] {
        assert!(text.contains(expected), "{expected} is not in what it said");
    }
    assert!(text.contains("\n holdfast-guest: exit code=0\n"), "the app's imitation is marked");
    assert_eq!(last_line(&text), "holdfast-guest: exit code=7");
    let exit = r#"{"class":{"guest-exit":{"code":7}},"reason":"the program ended with exit code 7"}"#;
    assert_eq!(end(&guest.device), exit);
    assert!(!text.contains("holdfast-guest: error"), "{text}");
    guest.check_disk("overlay");
    guest.check_disk("vol0");

    // A second start finds what the first left.
    let text = guest.run();
    assert!(text.contains("fact: boots 1"), "the volume keeps its content");
    assert_eq!(last_line(&text), "holdfast-guest: exit code=7");
}

#[test]
fn an_app_runs_as_the_user_the_image_names_and_reopens_its_output() {
    let mut guest = Guest::new("guest-user", &AppDocument { user: "app".into(), ..document(&["app", "serve"]) });
    guest.device.power_on().unwrap();
    guest.device.wait_for_hvc("app: ready", secs(60)).unwrap();
    // Port 80 as an ordinary user, reached over the network.
    let address = guest.device.forwarded(80);
    assert!(answer(address, secs(20)).ends_with("hello from the app\n"));
    // The same by a forward made now, and not while the cable is out.
    let later = guest.device.forward(0, 80).unwrap();
    guest.device.set_link(0, false).unwrap();
    assert_eq!(answer(later, Duration::from_secs(2)), "");
    guest.device.set_link(0, true).unwrap();
    assert!(answer(later, secs(20)).ends_with("hello from the app\n"));

    guest.device.press_power_button().unwrap();
    guest.device.wait_off(secs(20)).unwrap();
    let text = guest.device.hvc().text();
    assert!(text.contains("app: asked to stop\n"), "{text}");
    assert_eq!(last_line(&text), "holdfast-guest: exit code=3");
    guest.check_disk("overlay");
}

#[test]
fn an_app_that_ignores_the_power_button_is_killed_after_its_grace() {
    let mut guest =
        Guest::new("guest-stubborn", &AppDocument { grace_seconds: 1, ..document(&["/bin/app", "stubborn"]) });
    guest.device.power_on().unwrap();
    guest.device.wait_for_hvc("app: ready", secs(60)).unwrap();
    guest.device.press_power_button().unwrap();
    guest.device.wait_off(secs(20)).unwrap();
    assert_eq!(last_line(&guest.device.hvc().text()), "holdfast-guest: exit signal=9");
    let signal = r#"{"class":{"guest-signal":{"signal":9}},"reason":"the program was ended by signal 9"}"#;
    assert_eq!(end(&guest.device), signal);
    guest.check_disk("overlay");
}

#[test]
fn what_cannot_start_says_why() {
    let cases = [
        (document(&["no-such-program"]), "error: start no-such-program: ", "exit code=127"),
        (document(&["/etc/passwd"]), "error: start /etc/passwd: ", "exit code=126"),
        (
            AppDocument { user: "nobody".into(), ..document(&["app"]) },
            "user \"nobody\" is not in the image's /etc/passwd",
            "exit code=125",
        ),
        (
            AppDocument {
                mounts: vec![Mount { disk: "vol9".into(), at: "/x".into(), read_only: false }],
                ..document(&["app"])
            },
            "error: disk vol9: not there",
            "exit code=125",
        ),
    ];
    for (document, reason, end) in cases {
        let text = Guest::new("guest-fails", &document).run();
        assert!(text.contains(reason), "{reason}: {text}");
        assert_eq!(last_line(&text), format!("holdfast-guest: {end}"));
    }
}
