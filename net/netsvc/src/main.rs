//! `netsvc --config-fd N`: reads its document, closes its cage, serves until it is stopped.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use holdfast_model::contract::end::{End, ExitClass};
use holdfast_model::contract::network::ServiceDocument;
use holdfast_netsvc::service::ServiceError;
use holdfast_netsvc::{sandbox, service};
use holdfast_unit::document::ReadError;
use holdfast_unit::{LastWords, document};

fn main() -> ExitCode {
    let words = LastWords::adopt();
    let end = run();
    words.say(&end);
    eprintln!("netsvc: {end}");
    end.class.into()
}

/// Serves; there is no end but a fault, and the signal that ends the process.
fn run() -> End {
    let document: ServiceDocument = match document::from_command_line("netsvc") {
        Ok(document) => document,
        Err(e @ ReadError::Usage { .. }) => return End::new(ExitClass::Usage, e.to_string()),
        Err(e) => return End::new(ExitClass::Config, e.to_string()),
    };
    if let Err(e) = sandbox::enter() {
        return End::new(ExitClass::Jail, format!("sandbox: {e}"));
    }
    match service::run(document) {
        Ok(()) => End::new(ExitClass::Done, "service ended"),
        Err(e @ ServiceError::Descriptor(_)) => End::new(ExitClass::Resource, e.to_string()),
        Err(e @ ServiceError::Loop(_)) => End::host_fault(e.to_string()),
    }
}
