//! What the program says to input that it cannot use: one line that names the thing and the way out, and the exit code of
//! its class. Runs anywhere: none of these cases gets as far as KVM.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A 64-bit x86-64 ELF with one segment of 16 bytes at 1 MiB: a kernel as far as a loader can tell.
fn kernel() -> Vec<u8> {
    let mut image = vec![0u8; 0x100];
    let fields: [(usize, &[u8]); 11] = [
        (0, &[0x7f, b'E', b'L', b'F', 2, 1, 1]),
        (16, &2u16.to_le_bytes()),
        (18, &62u16.to_le_bytes()),
        (24, &0x10_0000u64.to_le_bytes()),
        (32, &64u64.to_le_bytes()),
        (52, &64u16.to_le_bytes()),
        (54, &56u16.to_le_bytes()),
        (56, &1u16.to_le_bytes()),
        // PT_LOAD: offset, physical address, size in the file; its size in memory is at 104.
        (64, &1u32.to_le_bytes()),
        (72, &0xf0u64.to_le_bytes()),
        (88, &0x10_0000u64.to_le_bytes()),
    ];
    for (at, bytes) in fields {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }
    for at in [96, 104] {
        image[at..at + 8].copy_from_slice(&16u64.to_le_bytes());
    }
    image
}

struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        let directory = Self(tempfile::tempdir().unwrap());
        let good = kernel();
        let mut arm = good.clone();
        arm[18] = 183;
        for (name, content) in [
            ("kernel", &good[..]),
            ("truncated", &good[..0xf8]),
            ("arm", &arm),
            ("script", b"#!/bin/sh\n"),
            ("empty", b""),
        ] {
            std::fs::write(directory.path(name), content).unwrap();
        }
        directory
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a VM of a good configuration with `fields` in place of, or beside, its own.
    fn run(&self, fields: &serde_json::Value) -> Output {
        let mut config = serde_json::json!({
            "version": 1, "name": "bad", "vcpus": 1, "memory_mib": 64,
            "kernel": {"path": "kernel"}, "kvm": {"path": "/dev/null"}
        });
        for (name, value) in fields.as_object().unwrap() {
            config[name] = value.clone();
        }
        std::fs::write(self.path("config.json"), config.to_string()).unwrap();
        vmm(&["--config", "config.json"], self.0.path())
    }
}

fn vmm(arguments: &[&str], directory: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmm")).args(arguments).current_dir(directory).output().unwrap()
}

/// The one line on stderr of a run that ends with `code`, with nothing on stdout.
fn only_line(output: &Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&output.stderr).trim_end().to_string();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert_eq!((text.lines().count(), output.stdout.len()), (1, 0), "{text}");
    text
}

#[test]
fn each_fault_has_its_exit_code_and_one_line_that_names_it() {
    let cases = [
        // Configuration: 20.
        (r#"{"memory_mib": 0}"#, 20, &["memory_mib is 0", "expected 32 to"][..]),
        (r#"{"vcpus": 0}"#, 20, &["vcpus is 0", "expected 1 to 64"]),
        (r#"{"vcpus": 65}"#, 20, &["vcpus is 65", "expected 1 to 64"]),
        (r#"{"vcpus": 300}"#, 20, &["config", "300", "--help"]),
        (r#"{"cpus": [1023]}"#, 20, &["cpus[0] is [1023]", "host CPUs that are online"]),
        (r#"{"cpus": [0, 0]}"#, 20, &["cpus is 2 entries", "each of 1 vCPUs"]),
        (r#"{"hugepages": "2M", "memory_mib": 65}"#, 20, &["memory_mib is 65", "multiple of 2"]),
        (r#"{"hugepages": "4M"}"#, 20, &["config", "4M", "thp"]),
        (r#"{"timer": "hpet"}"#, 20, &["config", "hpet", "tsc-deadline"]),
        (r#"{"cmdline": "\u0000"}"#, 20, &["cmdline", "printable"]),
        // Files: 21.
        (r#"{"kernel": {"path": "absent"}}"#, 21, &["kernel", "cannot open absent"]),
        (r#"{"initrd": {"path": "absent"}}"#, 21, &["initrd", "cannot open absent"]),
        (r#"{"kernel": {"fd": 977}}"#, 21, &["kernel", "inherited fd 977"]),
        (r#"{"hugepages": "1G", "memory_mib": 1048576}"#, 21, &["huge pages", "echo 1024 >", "nr_hugepages"]),
        // Images: 22.
        (r#"{"kernel": {"path": "truncated"}}"#, 22, &["kernel truncated", "is 248 bytes", "says 256"]),
        (r#"{"kernel": {"path": "arm"}}"#, 22, &["kernel arm", "machine 183", "x86-64"]),
        (r#"{"kernel": {"path": "script"}}"#, 22, &["kernel script", "expected an x86-64 ELF"]),
        (r#"{"kernel": {"path": "empty"}}"#, 22, &["kernel empty", "expected an x86-64 ELF"]),
        (r#"{"initrd": {"path": "empty"}}"#, 22, &["initrd empty", "is 0 bytes"]),
        // KVM: 23.
        (r#"{"kvm": {"path": "/nonexistent/kvm"}}"#, 23, &["cannot open /nonexistent/kvm", "virtualisation enabled"]),
        (r#"{}"#, 23, &["/dev/null is not KVM"]),
    ];
    let directory = Directory::new();
    for (fields, code, words) in cases {
        let output = directory.run(&serde_json::from_str(fields).unwrap());
        let line = only_line(&output, code);
        assert!(
            line.starts_with("vmm") && words.iter().all(|word| line.contains(word)),
            "{fields}: {words:?} not in {line:?}"
        );
    }
}

#[test]
fn wrong_arguments_and_unreadable_configurations_are_told_apart() {
    let directory = Directory::new();
    for (arguments, code, words) in [
        (&[][..], 2, "--help"),
        (&["--config"], 2, "--config"),
        (&["--config-fd", "x"], 2, "expected a descriptor number"),
        (&["--config", "absent.json"], 21, "cannot read absent.json"),
        (&["--config-fd", "977"], 21, "inherited fd 977"),
        (&["--config", "script"], 20, "expected value"),
    ] {
        let line = only_line(&vmm(arguments, directory.0.path()), code);
        assert!(line.contains(words), "{arguments:?}: {words:?} not in {line:?}");
    }
}
