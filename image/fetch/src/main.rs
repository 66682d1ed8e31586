//! The `fetch` program: `fetch --config-fd N`. See the library for what a job is.

use std::process::ExitCode;

use holdfast_fetch::failure::Failure;
use holdfast_model::contract::end::{End, ExitClass};
use holdfast_model::contract::fetch::{FailureClass, Job};
use holdfast_unit::document::ReadError;
use holdfast_unit::{LastWords, document};

fn main() -> ExitCode {
    let words = LastWords::adopt();
    let end = run();
    words.say(&end);
    if end.class.is_failure() {
        eprintln!("fetch: {end}");
    }
    end.class.into()
}

fn run() -> End {
    let job: Job = match document::from_command_line("fetch") {
        Ok(job) => job,
        Err(e @ ReadError::Usage { .. }) => return End::new(ExitClass::Usage, e.to_string()),
        Err(e) => return End::new(ExitClass::Config, e.to_string()),
    };
    match holdfast_fetch::run::job(&job) {
        Ok(()) => End::new(ExitClass::Done, "the job is complete"),
        Err(Failure { class: FailureClass::Local, text }) => End::new(ExitClass::Resource, text),
        Err(Failure { text, .. }) => End::new(ExitClass::Failed, text),
    }
}
