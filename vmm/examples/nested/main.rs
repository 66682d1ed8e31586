//! Both ends of the nested test (`tests/nested.rs`) in one static program: PID 1 of the machine that QEMU emulates, which
//! starts `/vmm`, and PID 1 of the Linux guest inside. Which one it is shows by whether `/vmm` exists. With `--list WORDS`
//! it names its scenarios: a number for the machine they share, and the name; with `--scenario NAME` it runs one.
//!
//! Every line that starts with `nested:` is read by the test.
//!
//! Modules: [`support`] (system calls both sides need), [`sockets`] (vsock, and conversations over it), [`host`] (starts VMs
//! and looks at them), [`guest`] (the roles a guest can play), [`script`] (guests without a kernel),
//! [`record`] (the system calls of a VM), [`cases`] (the scenarios:
//! one file for each subject, with both sides of it).

mod cases;
mod guest;
mod host;
mod record;
mod script;
mod sockets;
mod support;

fn main() {
    let argument = std::env::args().nth(2).unwrap_or_default();
    match std::env::args().nth(1).as_deref() {
        Some("--list") => return host::list(&argument),
        Some(host::SCENARIO) => return host::play(&argument),
        _ => {}
    }
    if std::path::Path::new("/vmm").exists() { host::main() } else { guest::main() }
}
