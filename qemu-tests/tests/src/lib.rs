//! Scenario tests of the whole device, and the two programs that show and measure it (`demo`, `bench`).
//!
//! Principles:
//! 1. A [`World`] is one controller and one device that belong together: SITE names the controller, the controller knows the serial.
//!    A scenario changes what the controller wants or what the machine suffers, and looks at what comes out: reports, HTTP answers, the console.
//! 2. Every wait goes through [`World::until`]: it has a deadline, ends when the machine dies, and says what was seen last.
//! 3. No waiting for a length of time, no looking into the device's inside: what an operator cannot see, a scenario does not see.
//! 4. Booting under emulation takes tens of seconds: checks that do not disturb each other share a boot.
//! 5. What a failure needs is kept and named; what a success leaves is nothing.
//!
//! ```no_run
//! # use holdfast_scenarios::{World, scenario, secs};
//! scenario(World::builder("hello"), |world| {
//!     world.power_on()?;
//!     world.wait_online(secs(240))?;
//!     world.deploy_webapp(secs(240))?;
//!     assert!(world.http_get("/", secs(30))?.contains("webapp"));
//!     Ok(())
//! });
//! ```
//!
//! Reading order: [`world`], [`webapp`], [`update`], [`look`], [`stages`], [`memory`], [`resources`], [`artefacts`], [`offline`], [`http`], [`debian`], [`docker_registry`], [`screen`].

#![forbid(unsafe_code)]

pub mod artefacts;
pub mod debian;
pub mod docker_registry;
pub mod http;
pub mod look;
pub mod memory;
pub mod offline;
pub mod resources;
pub mod screen;
pub mod stages;
pub mod update;
pub mod webapp;
pub mod world;

pub use artefacts::Artefacts;
pub use holdfast_harness::secs;
pub use world::{Builder, World, scenario};
