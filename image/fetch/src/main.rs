//! The `fetch` program: `fetch --config-fd N`. See the library for what a job is.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let fd = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--config-fd", n] => n.parse().ok(),
        _ => None,
    };
    let Some(fd) = fd else {
        eprintln!(
            "usage: fetch --config-fd N\nN is a descriptor with one job as JSON; reports go to the descriptor it names."
        );
        return ExitCode::from(2);
    };
    match holdfast_fetch::run::from_config_fd(fd) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("fetch: {failure}");
            ExitCode::FAILURE
        }
    }
}
