//! Client of an EVE controller: the device's end of device API v2.
//!
//! Principles:
//! 1. Trust comes from the roots of the site alone: for TLS and, separately, for every reply's envelope.
//! 2. Every wait has a deadline, every queue a bound, every retry a backoff; all stand in [`timing`].
//! 3. What to do is decided by pure functions ([`onboarding::next`], [`attestation::advance`], [`queue`]); the async code
//!    only carries it out. A current-thread runtime is enough; nothing is spawned.
//! 4. The config in force is kept raw and verifies again after a reboot with no network and no clock ([`store`]).
//! 5. A failure says what was asked, of whom, what was expected and what came ([`failure`]); none ends the client.
//!
//! Reading order: [`timing`], [`failure`], [`identity`] (what the device's keys must offer), [`client`], [`freshness`], [`onboarding`],
//! [`attestation`], [`store`], [`queue`], [`reports`].
//!
//! # Use
//!
//! ```no_run
//! use holdfast_controller_client::identity::DeviceIdentity;
//! use holdfast_controller_client::{Client, ClientConfig, ConfigAnswer, ConfigStore, ReportQueue, Timing};
//! use holdfast_controller_client::{attest_until_done, freshness, onboard, timing};
//!
//! async fn run(site: ClientConfig, identity: &dyn DeviceIdentity) -> Result<(), Box<dyn std::error::Error>> {
//!     let client = Client::new(site)?;
//!     let store = ConfigStore::open("/data/config")?;
//!
//!     // After a reboot: the last config, before and without any network.
//!     let mut applied = store.load_config(client.roots(), false)?;
//!     if let Some(config) = &applied {
//!         client.set_certificates(config.certificates.clone());
//!     }
//!
//!     match store.load_uuid()? {
//!         Some(uuid) => client.set_uuid(uuid),
//!         None => {
//!             let onboarded = onboard(&client, identity, |progress| println!("{progress:?}")).await;
//!             store.save_uuid(onboarded.uuid)?;
//!         }
//!     }
//!
//!     let reports = ReportQueue::new();
//!     let sender = reports.run(&client, identity, |refusal| println!("{refusal:?}"));
//!     let poll = async {
//!         let mut attested = attest_until_done(&client, identity, |state, error| println!("{state:?} {error}")).await;
//!         loop {
//!             let hash = applied.as_ref().map_or("", |config| config.hash());
//!             let time = applied.as_ref().map(|config| config.timestamp());
//!             match client.poll_config(identity, hash, &attested.token).await {
//!                 Ok(ConfigAnswer::New(config)) if freshness::refusal(&config, time, None).is_none() => {
//!                     store.save_config(&config)?;
//!                     // holdfast_api::config::to_desired(...), then:
//!                     client.set_timing(Timing::default());
//!                     applied = Some(*config);
//!                 }
//!                 Ok(ConfigAnswer::TokenRefused) => {
//!                     attested = attest_until_done(&client, identity, |_, _| {}).await;
//!                 }
//!                 Ok(_) => {}
//!                 Err(failure) => println!("{failure}"),
//!             }
//!             tokio::time::sleep(client.timing().next_poll(timing::random())).await;
//!         }
//!         #[allow(unreachable_code)]
//!         Ok::<(), Box<dyn std::error::Error>>(())
//!     };
//!     tokio::select! {
//!         result = poll => result,
//!         never = sender => match never {},
//!     }
//! }
//! ```

#![forbid(unsafe_code)]

pub mod attestation;
pub mod client;
pub mod failure;
pub mod freshness;
pub mod identity;
pub mod onboarding;
pub mod queue;
pub mod reports;
pub mod store;
pub mod timing;

mod tls;
mod transport;

pub use attestation::{AttestError, Attested, attest, attest_until_done};
pub use client::{Client, ClientConfig, ClientError, ConfigAnswer, ReceivedConfig};
pub use failure::{Class, Failure};
pub use identity::DeviceIdentity;
pub use onboarding::{Onboarded, onboard};
pub use reports::ReportQueue;
pub use store::{ConfigStore, StoreError};
pub use timing::Timing;
