//! Both ends of the nested test (`tests/nested.rs`) in one static program: PID 1 of the machine that QEMU emulates, which
//! starts `/vmm`, and PID 1 of the Linux guest inside. Which one it is shows by whether `/vmm` exists.
//!
//! Every line that starts with `nested:` is read by the test.

mod support {
    //! The few system calls that both sides need.

    use std::ffi::CString;
    use std::io;
    use std::net::Ipv4Addr;

    pub fn mount(kind: &str, target: &str) {
        let _ = std::fs::create_dir_all(target);
        let (kind, target) = (CString::new(kind).unwrap(), CString::new(target).unwrap());
        // SAFETY: valid C strings; no data.
        unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    }

    pub fn power_off() -> ! {
        // SAFETY: numbers only; does not return for PID 1.
        unsafe { libc::reboot(libc::RB_POWER_OFF) };
        std::process::exit(0)
    }

    /// `ifreq`: a name and 24 bytes.
    #[repr(C)]
    pub struct Ifreq {
        pub name: [u8; 16],
        pub data: [u8; 24],
    }

    pub fn ifreq(name: &str) -> Ifreq {
        let mut request = Ifreq { name: [0; 16], data: [0; 24] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        request
    }

    pub fn check(result: libc::c_int) -> io::Result<()> {
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Gives an interface an address in a /24 and brings it up.
    pub fn configure(name: &str, address: Ipv4Addr) -> io::Result<()> {
        // SAFETY: numbers only.
        let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        check(socket)?;
        let inet = |address: Ipv4Addr| {
            let mut request = ifreq(name);
            request.data[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            request.data[4..8].copy_from_slice(&address.octets());
            request
        };
        let mut up = ifreq(name);
        up.data[..2].copy_from_slice(&(libc::IFF_UP as u16).to_ne_bytes());
        for (number, request) in [
            (libc::SIOCSIFADDR, inet(address)),
            (libc::SIOCSIFNETMASK, inet(Ipv4Addr::new(255, 255, 255, 0))),
            (libc::SIOCSIFFLAGS, up),
        ] {
            // SAFETY: the kernel reads one `ifreq`.
            check(unsafe { libc::ioctl(socket, number, &request) })?;
        }
        // SAFETY: ours.
        check(unsafe { libc::close(socket) })
    }
}

mod host {
    //! PID 1 of the emulated machine.

    use std::fs::{File, OpenOptions};
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};
    use std::sync::mpsc::{Receiver, channel};
    use std::time::{Duration, Instant};

    use holdfast_vmm::config::{
        ConsoleConfig, DiskConfig, FileRef, JailConfig, NetConfig, SerialConfig, TapRef, VmConfig, default_cmdline,
    };
    use holdfast_vmm::control::{ControlClient, RunState, listen};

    use super::support::{check, configure, ifreq, mount, power_off};

    const CONTROL: &str = "/run/control";
    const DISK: &str = "/run/disk.img";
    /// `docs/design.md`, budgets: VMM memory per app beyond guest memory.
    const OVERHEAD_BUDGET_KIB: u64 = 3 * 1024;
    const GUEST_TIMEOUT: Duration = Duration::from_secs(60);
    /// What the guest sends over TCP.
    pub const STREAM_BYTES: usize = 4 << 20;

    const JAIL: Option<JailConfig> = Some(JailConfig { uid: 1000, gid: 1000, pid_namespace: true });

    type Outcome = Result<String, String>;

    pub fn main() -> ! {
        for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run")] {
            mount(kind, target);
        }
        type Scenario = fn() -> Outcome;
        let scenarios: [(&str, Scenario); 9] = [
            ("timers_fire_on_time_and_memory_above_4_gib_is_found", timers),
            ("jailed_guest_with_vhost_net_serves_and_obeys_the_power_button", jailed),
            ("stand_alone_guest_with_user_space_net_on_two_vcpus", || user_space_net(None)),
            ("jailed_guest_with_user_space_net_on_two_vcpus", || user_space_net(JAIL)),
            ("random_register_writes_never_crash_the_vmm", random_registers),
            ("bzimage_guest_that_resets_exits_10", resets),
            ("guest_that_ignores_the_button_is_stopped_at_the_deadline", stubborn),
            ("hostile_guest_ends_itself_with_a_reason", hostile),
            ("missing_tap_is_named_and_leaves_nothing", missing_tap),
        ];
        let only = cmdline_word("nested.only=");
        for (name, scenario) in scenarios {
            if !name.contains(&only) {
                continue;
            }
            let started = Instant::now();
            match scenario() {
                Ok(note) => println!("nested: ok {name} ({:.1} s) {note}", started.elapsed().as_secs_f32()),
                Err(reason) => println!("nested: FAILED {name}: {reason}"),
            }
        }
        println!("nested: done");
        power_off()
    }

    /// The value of a word of this machine's command line; words may be quoted.
    fn cmdline_word(name: &str) -> String {
        let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let quoted = line.split('"').find_map(|part| part.strip_prefix(name));
        let plain = line.split_whitespace().find_map(|part| part.strip_prefix(name));
        quoted.or(plain).unwrap_or_default().trim().to_string()
    }

    fn text(e: impl std::fmt::Display) -> String {
        e.to_string()
    }

    fn open(path: &str, write: bool) -> Result<File, String> {
        OpenOptions::new().read(true).write(write).open(path).map_err(|e| format!("{path}: {e}"))
    }

    fn tap(name: &str) -> Result<File, String> {
        let file = open("/dev/net/tun", true)?;
        let mut request = ifreq(name);
        let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
        request.data[..2].copy_from_slice(&flags.to_ne_bytes());
        // SAFETY: the kernel reads and writes one `ifreq`.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &mut request) }).map_err(text)?;
        configure(name, Ipv4Addr::new(10, 9, 0, 1)).map_err(|e| format!("{name}: {e}"))?;
        Ok(file)
    }

    fn disk() -> Result<File, String> {
        let mut image = vec![0u8; 1 << 20];
        image[..512].fill(0x5a);
        std::fs::write(DISK, image).map_err(text)?;
        open(DISK, true)
    }

    fn config(name: &str, kernel: FileRef, initrd: FileRef, words: &str) -> VmConfig {
        VmConfig {
            name: name.into(),
            vcpus: 1,
            memory_mib: 128,
            kernel,
            initrd: Some(initrd),
            cmdline: match cmdline_word("nested.guest=") {
                replaced if replaced.contains("console=") => format!("{replaced} {words}"),
                added => format!("{} {words} {added}", default_cmdline()),
            },
            kvm: FileRef::Path("/dev/kvm".into()),
            disks: vec![],
            nets: vec![],
            rng: true,
            console: None,
            serial: None,
            control: None,
            jail: None,
        }
    }

    /// Lines that a guest prints, as they come.
    struct Lines(Receiver<String>);

    impl Lines {
        fn of(reader: impl Read + Send + 'static) -> Self {
            let (sender, lines) = channel();
            let started = Instant::now();
            std::thread::spawn(move || {
                for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line).trim_end().to_string();
                    println!("{:7.2} guest| {line}", started.elapsed().as_secs_f32());
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
            Self(lines)
        }

        /// The rest of the first line that starts with `word`.
        fn wait(&self, word: &str) -> Outcome {
            let deadline = Instant::now() + GUEST_TIMEOUT;
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                let line = self.0.recv_timeout(left).map_err(|_| format!("guest did not say {word:?}"))?;
                if let Some(rest) = line.strip_prefix(word) {
                    return Ok(rest.trim().to_string());
                }
            }
        }
    }

    fn pipe() -> Result<(File, File), String> {
        let mut fds = [0; 2];
        // SAFETY: the array has room for both descriptors.
        check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }).map_err(text)?;
        // SAFETY: fresh descriptors, owned by nobody else.
        Ok(unsafe { (File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1])) })
    }

    /// Starts `/vmm --config-fd 3` with `files` as descriptors 4 and up.
    fn spawn_with(config: &VmConfig, files: Vec<OwnedFd>) -> Result<(Child, Lines), String> {
        let (reader, mut writer) = pipe()?;
        writer.write_all(&config.to_json()).map_err(text)?;
        drop(writer);
        let mut sources: Vec<OwnedFd> = vec![reader.into()];
        sources.extend(files);
        // Out of the way of the numbers they will get.
        let moved: Vec<RawFd> = sources
            .iter()
            // SAFETY: duplicates a number.
            .map(|fd| unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 100) })
            .collect();
        let mut command = Command::new("/vmm");
        command.args(["--config-fd", "3"]);
        let targets = moved.clone();
        // SAFETY: only async-signal-safe calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                for (target, fd) in (3..).zip(&targets) {
                    check(libc::dup2(*fd, target))?;
                }
                Ok(())
            })
        };
        command.stderr(std::process::Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("/vmm: {e}"))?;
        for fd in moved {
            // SAFETY: our own duplicates.
            unsafe { libc::close(fd) };
        }
        let stderr = child.stderr.take().ok_or("no stderr")?;
        Ok((child, Lines::of(stderr)))
    }

    fn exit_code(child: &mut Child) -> Result<i32, String> {
        let deadline = Instant::now() + GUEST_TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait().map_err(text)? {
                return status.code().ok_or(format!("vmm ended by {status}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = child.kill();
        Err("vmm did not end".into())
    }

    fn expect_code(child: &mut Child, code: i32) -> Result<(), String> {
        match exit_code(child)? {
            found if found == code => Ok(()),
            found => Err(format!("exit code {found}, expected {code}")),
        }
    }

    /// Answers one TCP connection: echoes a line, then counts bytes until the end.
    fn serve_tcp(listener: TcpListener) -> Receiver<Result<usize, String>> {
        let (sender, result) = channel();
        std::thread::spawn(move || {
            let serve = || -> Result<usize, std::io::Error> {
                let (mut stream, _) = listener.accept()?;
                stream.set_read_timeout(Some(GUEST_TIMEOUT))?;
                let mut line = String::new();
                let mut reader = BufReader::new(stream.try_clone()?);
                reader.read_line(&mut line)?;
                stream.write_all(line.as_bytes())?;
                let mut count = 0;
                let mut buf = vec![0; 1 << 16];
                loop {
                    match reader.read(&mut buf)? {
                        0 => break,
                        n => count += n,
                    }
                }
                stream.write_all(b"all\n")?;
                Ok(count)
            };
            let _ = sender.send(serve().map_err(text));
        });
        result
    }

    /// Has the guest echo a line.
    fn echo_from_guest() -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&"10.9.0.2:7001".parse().unwrap(), Duration::from_secs(10))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"again\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        if line == "again\n" { Ok(()) } else { Err(std::io::Error::other(format!("{line:?}"))) }
    }

    /// The processes of a VM: the one we started and, in a pid namespace, its child.
    fn processes(child: &Child) -> Vec<u32> {
        let id = child.id();
        let children = std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
            let child = entry.file_name().to_string_lossy().parse().ok()?;
            // pid (name) state parent ...
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<u32>().ok()?;
            (parent == id).then_some(child)
        });
        std::iter::once(id).chain(children).collect()
    }

    /// Proportional memory of the VM's processes beyond guest memory, KiB.
    fn overhead_kib(child: &Child, guest_bytes: u64) -> u64 {
        let mut sum = 0;
        for id in processes(child) {
            let maps = std::fs::read_to_string(format!("/proc/{id}/smaps")).unwrap_or_default();
            let (mut is_guest, mut kib) = (false, 0);
            for line in maps.lines() {
                let range = line.split(' ').next().and_then(|r| r.split_once('-'));
                if let Some((Ok(from), Ok(to))) =
                    range.map(|(a, b)| (u64::from_str_radix(a, 16), u64::from_str_radix(b, 16)))
                {
                    is_guest = to - from >= guest_bytes;
                }
                if let Some(rest) = line.strip_prefix("Pss:")
                    && !is_guest
                {
                    kib += rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
                }
            }
            sum += kib;
        }
        sum
    }

    /// What of the jail can be seen from outside.
    fn check_jail(child: &Child) -> Result<(), String> {
        let inner = *processes(child).last().ok_or("no process")?;
        let status = std::fs::read_to_string(format!("/proc/{inner}/status")).map_err(text)?;
        let field = |name: &str| {
            status.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim().to_string()).unwrap_or_default()
        };
        for (name, expected) in [("CapEff:", "0000000000000000"), ("NoNewPrivs:", "1"), ("Seccomp:", "2")] {
            if field(name) != expected {
                return Err(format!("{name} is {:?}, expected {expected:?}", field(name)));
            }
        }
        if !field("Uid:").starts_with("1000") {
            return Err(format!("uid is {:?}", field("Uid:")));
        }
        for space in ["net", "mnt", "ipc", "uts", "pid"] {
            let of = |id: &str| std::fs::read_link(format!("/proc/{id}/ns/{space}")).map_err(text);
            if of("self")? == of(&inner.to_string())? {
                return Err(format!("{space} namespace is ours"));
            }
        }
        let root: Vec<_> = std::fs::read_dir(format!("/proc/{inner}/root")).map_err(text)?.collect();
        if !root.is_empty() {
            return Err(format!("root holds {} entries", root.len()));
        }
        // Each of our threads has its filter. The vhost worker is the kernel's own and runs no code of ours.
        for task in std::fs::read_dir(format!("/proc/{inner}/task")).map_err(text)?.flatten() {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let (filtered, worker) = (status.contains("Seccomp:\t2"), status.contains("Name:\tvhost-"));
            if !filtered && !worker {
                return Err(format!("a thread has no seccomp filter: {}", status.lines().next().unwrap_or("")));
            }
        }
        Ok(())
    }

    fn jailed() -> Outcome {
        let tap = tap("tap0")?;
        let (console_reader, console_writer) = pipe()?;
        let (control, initrd) = (listen(CONTROL.as_ref()).map_err(text)?, open("/guest-initrd", false)?);
        let files: Vec<OwnedFd> = vec![
            open("/dev/kvm", true)?.into(),
            open("/guest-kernel", false)?.into(),
            initrd.into(),
            disk()?.into(),
            tap.into(),
            open("/dev/vhost-net", true)?.into(),
            control,
            console_writer.into(),
        ];
        let mut config = config("jailed", FileRef::Fd(5), FileRef::Fd(6), "nested.role=serve");
        config.kvm = FileRef::Fd(4);
        config.disks = vec![DiskConfig { id: "data".into(), file: FileRef::Fd(7), read_only: false }];
        let mac = "02:00:00:00:00:02".parse().map_err(text)?;
        config.nets = vec![NetConfig { mac, tap: TapRef::Fd(8), vhost: Some(FileRef::Fd(9)), mtu: Some(1400) }];
        config.control = Some(FileRef::Fd(10));
        config.console = Some(ConsoleConfig { output: FileRef::Fd(11), input: None });
        config.jail = Some(JailConfig { uid: 1000, gid: 1000, pid_namespace: true });
        let listener = TcpListener::bind("0.0.0.0:7000").map_err(text)?;
        let tcp = serve_tcp(listener);
        let started = Instant::now();
        let (mut child, _errors) = spawn_with(&config, files)?;
        let lines = Lines::of(console_reader);
        lines.wait("guest: init")?;
        let boot = started.elapsed();
        let serial = lines.wait("guest: serial")?;
        if serial != "data" {
            return Err(format!("disk serial is {serial:?}"));
        }
        lines.wait("guest: disk ok")?;
        lines.wait("guest: rng ok")?;
        let network = lines.wait("guest: net ok")?;
        lines.wait("guest: waiting")?;
        let bytes = tcp.recv_timeout(GUEST_TIMEOUT).map_err(|_| "no TCP connection".to_string())??;
        if bytes != STREAM_BYTES {
            return Err(format!("{bytes} bytes arrived, expected {STREAM_BYTES}"));
        }
        check_jail(&child)?;
        let overhead = overhead_kib(&child, 64 << 20);
        let mut client = ControlClient::connect(CONTROL).map_err(text)?;
        client.pause().map_err(text)?;
        if client.ping().map_err(text)? != RunState::Paused {
            return Err("not paused".into());
        }
        client.resume().map_err(text)?;
        drop(client);
        echo_from_guest().map_err(|e| format!("echo after resume: {e}"))?;
        let mut client = ControlClient::connect(CONTROL).map_err(text)?;
        let stats = client.stats().map_err(text)?;
        client.power_button().map_err(text)?;
        lines.wait("guest: button")?;
        expect_code(&mut child, 0)?;
        let image = std::fs::read(DISK).map_err(text)?;
        if image[4096..8192] != [0xa5; 4096] {
            return Err("what the guest wrote is not in the image".into());
        }
        if overhead > OVERHEAD_BUDGET_KIB {
            return Err(format!("{overhead} KiB beyond guest memory, budget {OVERHEAD_BUDGET_KIB} KiB"));
        }
        let (pio, mmio) = stats.vcpus.iter().fold((0, 0), |(p, m), v| (p + v.pio_exits, m + v.mmio_exits));
        Ok(format!("boot {} ms, exits {pio} pio {mmio} mmio, overhead {overhead} KiB, {network}", boot.as_millis()))
    }

    fn user_space_net(jail: Option<JailConfig>) -> Outcome {
        let (reader, writer) = pipe()?;
        let tap = tap("tap1")?;
        let kernel = FileRef::Path("/guest-kernel".into());
        let mut config = config("alone", kernel, FileRef::Path("/guest-initrd".into()), "nested.role=serve");
        config.vcpus = 2;
        config.jail = jail;
        disk()?;
        config.disks = vec![DiskConfig { id: "data".into(), file: FileRef::Path(DISK.into()), read_only: false }];
        let mac = "02:00:00:00:00:03".parse().map_err(text)?;
        config.nets = vec![NetConfig { mac, tap: TapRef::Fd(4), vhost: None, mtu: None }];
        config.control = Some(FileRef::Path(CONTROL.into()));
        config.console = Some(ConsoleConfig { output: FileRef::Fd(5), input: None });
        let tcp = serve_tcp(TcpListener::bind("0.0.0.0:7000").map_err(text)?);
        let (mut child, _errors) = spawn_with(&config, vec![tap.into(), writer.into()])?;
        let lines = Lines::of(reader);
        let cpus = lines.wait("guest: cpus")?;
        if cpus != "2" {
            return Err(format!("guest sees {cpus} CPUs"));
        }
        lines.wait("guest: disk ok")?;
        let network = lines.wait("guest: net ok")?;
        lines.wait("guest: waiting")?;
        let bytes = tcp.recv_timeout(GUEST_TIMEOUT).map_err(|_| "no TCP connection".to_string())??;
        if bytes != STREAM_BYTES {
            return Err(format!("{bytes} bytes arrived, expected {STREAM_BYTES}"));
        }
        // SAFETY: our own child.
        check(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }).map_err(text)?;
        lines.wait("guest: button")?;
        expect_code(&mut child, 0)?;
        Ok(network)
    }

    fn timers() -> Outcome {
        let (reader, writer) = pipe()?;
        let kernel = FileRef::Path("/guest-kernel".into());
        let mut config = config("timers", kernel, FileRef::Path("/guest-initrd".into()), "nested.role=sleep");
        config.memory_mib = 4096;
        config.console = Some(ConsoleConfig { output: FileRef::Fd(4), input: None });
        let (mut child, _errors) = spawn_with(&config, vec![writer.into()])?;
        let lines = Lines::of(reader);
        let memory = lines.wait("guest: memory")?;
        if memory.parse::<u64>().unwrap_or(0) < 3900 << 10 {
            return Err(format!("guest has {memory} KiB"));
        }
        lines.wait("guest: sleeping")?;
        let started = Instant::now();
        let inside = lines.wait("guest: slept")?;
        let outside = started.elapsed();
        expect_code(&mut child, 0)?;
        // Ten sleeps of 100 ms; emulation is slow, a lost timer is slower.
        if outside > Duration::from_secs(4) {
            return Err(format!("1 s of sleep took {} ms outside, {inside} inside", outside.as_millis()));
        }
        Ok(format!("1 s of sleep: {} ms outside, {inside} inside", outside.as_millis()))
    }

    fn resets() -> Outcome {
        let path = if std::path::Path::new("/guest-bzimage").exists() { "/guest-bzimage" } else { "/guest-kernel" };
        let (reader, writer) = pipe()?;
        let words = "nested.role=reboot console=ttyS0";
        let mut config = config("reset", FileRef::Path(path.into()), FileRef::Path("/guest-initrd".into()), words);
        config.cmdline = config.cmdline.replace("8250.nr_uarts=0 ", "");
        config.console = Some(ConsoleConfig { output: FileRef::Fd(4), input: None });
        config.jail = Some(JailConfig { uid: 1000, gid: 1000, pid_namespace: false });
        config.serial = Some(SerialConfig { output: FileRef::Path("/run/serial".into()) });
        let (mut child, _errors) = spawn_with(&config, vec![writer.into()])?;
        Lines::of(reader).wait("guest: rebooting")?;
        expect_code(&mut child, 10)?;
        Ok(path.trim_start_matches('/').to_string())
    }

    fn stubborn() -> Outcome {
        let (reader, writer) = pipe()?;
        let kernel = FileRef::Path("/guest-kernel".into());
        let mut config = config("stubborn", kernel, FileRef::Path("/guest-initrd".into()), "nested.role=ignore");
        config.control = Some(FileRef::Path(CONTROL.into()));
        config.console = Some(ConsoleConfig { output: FileRef::Fd(4), input: None });
        let (mut child, _errors) = spawn_with(&config, vec![writer.into()])?;
        Lines::of(reader).wait("guest: ignoring")?;
        ControlClient::connect(CONTROL).map_err(text)?.stop(Duration::from_millis(500)).map_err(text)?;
        expect_code(&mut child, 12)?;
        Ok(String::new())
    }

    fn hostile() -> Outcome {
        let (reader, writer) = pipe()?;
        let kernel = FileRef::Path("/guest-kernel".into());
        let mut config = config("hostile", kernel, FileRef::Path("/guest-initrd".into()), "nested.role=hostile");
        config.cmdline.push_str(" iomem=relaxed");
        config.console = Some(ConsoleConfig { output: FileRef::Fd(4), input: None });
        let (mut child, errors) = spawn_with(&config, vec![writer.into()])?;
        Lines::of(reader).wait("guest: hostile")?;
        let reason = errors.wait("vmm hostile:")?;
        expect_code(&mut child, 11)?;
        Ok(reason)
    }

    fn random_registers() -> Outcome {
        let (reader, writer) = pipe()?;
        let kernel = FileRef::Path("/guest-kernel".into());
        let mut config = config("random", kernel, FileRef::Path("/guest-initrd".into()), "nested.role=random");
        config.console = Some(ConsoleConfig { output: FileRef::Fd(4), input: None });
        config.jail = JAIL;
        config.control = Some(FileRef::Path(CONTROL.into()));
        disk()?;
        config.disks = vec![DiskConfig { id: "data".into(), file: FileRef::Path(DISK.into()), read_only: false }];
        let (mut child, _errors) = spawn_with(&config, vec![writer.into()])?;
        let lines = Lines::of(reader);
        lines.wait("guest: random")?;
        std::thread::sleep(Duration::from_secs(2));
        if child.try_wait().map_err(text)?.is_none() {
            ControlClient::connect(CONTROL).map_err(text)?.stop(Duration::from_millis(100)).map_err(text)?;
        }
        // The guest may hang in its own nonsense, reset, or be ended for it; nothing else.
        match exit_code(&mut child)? {
            code @ (0 | 10 | 11 | 12) => Ok(format!("exit code {code}")),
            code => Err(format!("exit code {code}")),
        }
    }

    fn missing_tap() -> Outcome {
        let kernel = FileRef::Path("/guest-kernel".into());
        let mut config = config("bad", kernel, FileRef::Path("/guest-initrd".into()), "");
        let mac = "02:00:00:00:00:04".parse().map_err(text)?;
        config.nets = vec![NetConfig { mac, tap: TapRef::Fd(77), vhost: None, mtu: None }];
        let (mut child, errors) = spawn_with(&config, vec![])?;
        let reason = errors.wait("vmm bad: net0:")?;
        expect_code(&mut child, 21)?;
        Ok(reason)
    }
}

mod guest {
    //! PID 1 of the guest.

    use std::fs::{File, OpenOptions};
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::unix::fs::{FileExt, OpenOptionsExt};
    use std::time::{Duration, Instant};

    use super::host::STREAM_BYTES;
    use super::support::{configure, mount, power_off};

    pub fn main() -> ! {
        for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
            mount(kind, target);
        }
        let mut console = OpenOptions::new().write(true).open("/dev/hvc0").unwrap();
        let mut say = |line: String| {
            let _ = writeln!(console, "guest: {line}");
        };
        say("init".into());
        let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let role = cmdline.split_whitespace().find_map(|w| w.strip_prefix("nested.role=")).unwrap_or("").to_string();
        match role.as_str() {
            "reboot" => {
                say("rebooting".into());
                std::thread::sleep(Duration::from_millis(200));
                // SAFETY: numbers only.
                unsafe { libc::reboot(libc::RB_AUTOBOOT) };
            }
            "sleep" => {
                let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
                say(format!("memory {}", memory.split_whitespace().nth(1).unwrap_or("")));
                say("sleeping".into());
                let started = Instant::now();
                for _ in 0..10 {
                    std::thread::sleep(Duration::from_millis(100));
                }
                let clock = std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
                say(format!("slept {} ms by {}", started.elapsed().as_millis(), clock.unwrap_or_default().trim()));
                power_off();
            }
            "ignore" => say("ignoring".into()),
            "hostile" => {
                say("hostile".into());
                std::thread::sleep(Duration::from_millis(200));
                registers("0x1044", |map| map.write(0x18, 3));
            }
            "random" => {
                say("random".into());
                std::thread::sleep(Duration::from_millis(200));
                random_writes();
                power_off();
            }
            _ => serve(&mut say),
        }
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn serve(say: &mut dyn FnMut(String)) {
        // SAFETY: asks for a number.
        say(format!("cpus {}", unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }));
        say(format!("serial {}", std::fs::read_to_string("/sys/block/vda/serial").unwrap_or_default().trim()));
        match disk() {
            Ok(()) => say("disk ok".into()),
            Err(e) => say(format!("disk FAILED {e}")),
        }
        let mut random = [0u8; 64];
        match File::open("/dev/hwrng").and_then(|mut f| f.read_exact(&mut random)) {
            Ok(()) if random != [0; 64] => say("rng ok".into()),
            other => say(format!("rng FAILED {other:?}")),
        }
        match network() {
            Ok(note) => say(format!("net ok {note}")),
            Err(e) => say(format!("net FAILED {e}")),
        }
        std::thread::spawn(echo);
        let mut events = File::open("/dev/input/event0");
        say("waiting".into());
        // struct input_event: 16 bytes of time, type, code, value. KEY_POWER is 116.
        let mut event = [0u8; 24];
        while let Ok(file) = &mut events {
            if file.read_exact(&mut event).is_err() {
                break;
            }
            if u16::from_ne_bytes([event[16], event[17]]) == 1 && u16::from_ne_bytes([event[18], event[19]]) == 116 {
                say("button".into());
                power_off();
            }
        }
        say(format!("no button: {events:?}"));
    }

    /// Echoes one line to each who connects.
    fn echo() {
        let Ok(listener) = TcpListener::bind("0.0.0.0:7001") else { return };
        for mut stream in listener.incoming().flatten() {
            let Ok(copy) = stream.try_clone() else { continue };
            let mut line = String::new();
            if BufReader::new(copy).read_line(&mut line).is_ok() {
                let _ = stream.write_all(line.as_bytes());
            }
        }
    }

    fn disk() -> std::io::Result<()> {
        let disk = OpenOptions::new().read(true).write(true).open("/dev/vda")?;
        let mut first = [0u8; 512];
        disk.read_exact_at(&mut first, 0)?;
        if first != [0x5a; 512] {
            return Err(std::io::Error::other("wrong content"));
        }
        disk.write_all_at(&[0xa5; 4096], 4096)?;
        disk.sync_all()?;
        let past = disk.read_at(&mut first, 1 << 20)?;
        if past != 0 { Err(std::io::Error::other("reads past the end")) } else { Ok(()) }
    }

    fn network() -> std::io::Result<String> {
        configure("eth0", Ipv4Addr::new(10, 9, 0, 2))?;
        let mtu = std::fs::read_to_string("/sys/class/net/eth0/mtu")?;
        let mut stream = TcpStream::connect_timeout(&"10.9.0.1:7000".parse().unwrap(), Duration::from_secs(20))?;
        let started = Instant::now();
        stream.write_all(b"hello\n")?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let round_trip = started.elapsed();
        let started = Instant::now();
        stream.write_all(&vec![7u8; STREAM_BYTES])?;
        stream.shutdown(std::net::Shutdown::Write)?;
        line.clear();
        reader.read_line(&mut line)?;
        let rate = STREAM_BYTES as f32 / started.elapsed().as_secs_f32() / 1e6;
        Ok(format!("mtu {} rtt {} us, {rate:.0} MB/s", mtu.trim(), round_trip.as_micros()))
    }

    /// A device's BAR 0, mapped.
    struct Registers(*mut u8);

    impl Registers {
        /// Writes a 16-bit register.
        fn write(&self, offset: usize, value: u16) {
            // SAFETY: within the mapping, aligned; device registers have no other owner that we respect here.
            unsafe { self.0.add(offset).cast::<u16>().write_volatile(value) }
        }
    }

    /// Hands the registers of each PCI device with this id to `with`.
    fn registers(id: &str, with: impl Fn(Registers)) {
        use std::os::fd::AsRawFd;
        for entry in std::fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten() {
            let device = std::fs::read_to_string(entry.path().join("device")).unwrap_or_default();
            if device.trim() != id {
                continue;
            }
            let path = entry.path().join("resource0");
            let Ok(bar) = OpenOptions::new().read(true).write(true).custom_flags(libc::O_SYNC).open(path) else {
                continue;
            };
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new shared mapping of the device's registers.
            let map =
                unsafe { libc::mmap(std::ptr::null_mut(), 0x8000, protection, libc::MAP_SHARED, bar.as_raw_fd(), 0) };
            if map != libc::MAP_FAILED {
                with(Registers(map.cast()));
            }
        }
    }

    /// Random writes to the registers and configuration space of the disk and the entropy device.
    fn random_writes() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for id in ["0x1044", "0x1042"] {
            let writes: Vec<(usize, u16)> =
                (0..2000).map(|_| (random() as usize % 0x3ffc * 2, random() as u16)).collect();
            // Table, notify and status registers; not the sizes that are known to end the VM at once.
            registers(id, |map| {
                writes.iter().filter(|(at, _)| *at >= 0x1000).for_each(|(at, value)| map.write(*at, *value))
            });
            for entry in std::fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten() {
                let Ok(config) = OpenOptions::new().write(true).open(entry.path().join("config")) else { continue };
                for _ in 0..200 {
                    let _ = config.write_at(&(random() as u32).to_le_bytes(), random() % 64 * 4);
                }
            }
            registers(id, |map| writes.iter().for_each(|(at, value)| map.write(at % 0x40, *value)));
        }
    }
}

fn main() {
    if std::path::Path::new("/vmm").exists() { host::main() } else { guest::main() }
}
