//! PID 1, in four lines: boot, supervise, come down, end. The crate's library says more.
#![forbid(unsafe_code)]

use holdfast_pid1::boot::sequence;
use holdfast_pid1::node;

fn main() {
    if std::process::id() != 1 {
        eprintln!("pid1: this is the first program of a Holdfast machine; it runs as process 1 only");
        std::process::exit(2);
    }
    let machine = sequence::boot();
    let mut supervisor = node::supervise(machine);
    let down = supervisor.run();
    supervisor.into_platform().end(&down)
}
