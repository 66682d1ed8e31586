//! `holdfast-controller`: runs the controller, and talks to a running one over its admin API.
//!
//! Principles:
//! 1. `serve` is the only command that holds state; every other command is one or two requests to the admin API.
//! 2. What a command prints on stdout is the answer and nothing else, so that scripts can read it.
//! 3. An error says which request failed and what the controller said.
//!
//! Reading order: [`args`] (the command line), [`serve`], [`client`] (requests), [`commands`].

#![forbid(unsafe_code)]

#[path = "cli/args.rs"]
mod args;
#[path = "cli/client.rs"]
mod client;
#[path = "cli/commands.rs"]
mod commands;
#[path = "cli/serve.rs"]
mod serve;

use args::{Args, Command};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.command {
        Command::Serve(options) => serve::run(options, args.admin),
        Command::Image(command) => commands::image(command, args.admin),
        other => commands::run(other, args.admin),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast-controller: {error}");
            ExitCode::FAILURE
        }
    }
}
