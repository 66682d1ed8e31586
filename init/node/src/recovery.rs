//! A vault that this boot cannot unseal: opened with the key that the controller keeps in escrow.
//!
//! ```text
//!  closed --onboarded, attested--> keys --one fits--> open, sealed to this boot --> the agent begins
//!    ^                               |
//!    +---- said, reported, later ----+ none fits, or the controller keeps none
//! ```
//! 1. The controller decides: it gives the key only to a boot whose quote it believes.
//! 2. Nothing is lost by trying: a key that does not fit changes nothing, and only a stronger seal replaces the present one.
//! 3. The config lies in the vault, so the network is that of SITE, else DHCP on all Ethernet ports, and no app runs.
//! 4. A trial has [`Deadlines::vault`] to get there, else the image before it comes back. A committed image tries for ever, in
//!    maintenance mode.

use crate::agent::power;
use crate::boot::{Boot, Paths};
use crate::machine;
use crate::network::Network;
use crate::supervisor::Supervisor;
use crate::trust::{self, Device, Locked};
use crate::update::Update;
use crate::{reports, session};
use anyhow::{Context, Result, bail};
use holdfast_api::info;
use holdfast_controller_client::identity::EscrowKey;
use holdfast_controller_client::onboarding::Progress;
use holdfast_controller_client::{Client, ReportQueue, attest_until_done, onboard};
use holdfast_identity::Vault;
use holdfast_model::desired::Desired;
use holdfast_model::observed::{AttestationState, DeviceState, Observed};
use holdfast_plan::Allocations;
use holdfast_slots::trial::{Deadlines, Health, Verdict, judge};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use uuid::Uuid;

/// Longest time between two turns.
const TICK: Duration = Duration::from_secs(1);
/// How often PID 1 is told that the loop turns.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Between two times of asking a controller that gave no key that fits.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Bound of each queue.
const QUEUE: usize = 64;

/// What the controller's side brings.
enum News {
    Device(Uuid),
    Attestation { state: AttestationState, error: String },
    Trouble(String),
    Keys(Vec<EscrowKey>),
}

/// Runs until the vault is open.
///
/// # Errors
/// When the controller cannot be asked at all (no SITE, no certificate that it knows), or the time of a trial is over.
pub async fn run(boot: &Boot, paths: &Paths, supervisor: &Rc<RefCell<Supervisor>>, locked: &Locked) -> Result<Vault> {
    say(&format!("{}; the controller is asked for the key in escrow", locked.why));
    let device = Rc::new(Device::locked(locked, boot).context("the vault stays closed")?);
    let client =
        session::client(boot, &device)?.context("the vault stays closed, and SITE names no controller to ask")?;
    let update = Update::open(boot, paths)?;
    let (mut network, mut leases) = Network::new(boot, paths, supervisor.clone(), QUEUE)?;
    let reports = Rc::new(ReportQueue::new());
    let (addresses, have) = watch::channel(session::Addresses::default());
    let mut news = ask(Rc::new(client), device.clone(), reports.clone(), have);

    let mut known = Known { why: locked.why.clone(), ..Known::default() };
    let (mut told, mut trouble) = (Observed::default(), String::new());
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut beaten = Duration::ZERO;
    loop {
        tokio::select! {
            Some(lease) = leases.recv() => network.lease(lease),
            changed = network.changed() => network.note(changed),
            Some(news) = news.recv() => match news {
                News::Device(id) => known.device = Some(id),
                News::Attestation { state, error } => {
                    if !error.is_empty() && error != known.attestation_error {
                        say(&format!("attestation: {error}"));
                    }
                    (known.attestation, known.attestation_error) = (state, error);
                }
                News::Trouble(text) => {
                    // Tried again and again: said when it changes.
                    if text != trouble {
                        say(&text);
                        trouble = text;
                    }
                }
                News::Keys(keys) => {
                    supervisor.borrow_mut().heartbeat()?;
                    match first_that_fits(&keys, |key| locked.open_with(key)) {
                        Ok(vault) => return Ok(vault),
                        Err(text) => {
                            say(&text);
                            known.why = format!("{}; {text}", locked.why);
                        }
                    }
                }
            },
            _ = tick.tick() => {}
        }
        let (_, texts) =
            network.turn(&Desired::default(), false, None, &|_| 0, &Allocations::default(), &BTreeSet::new()).await;
        texts.iter().for_each(|text| say(text));
        addresses.send_replace(network.management_addresses());
        let now = machine::now();
        if now.saturating_sub(beaten) >= HEARTBEAT {
            beaten = now;
            supervisor.borrow_mut().heartbeat()?;
        }
        let health = Health { now, ..Health::default() };
        if update.in_trial()
            && let Verdict::Failed(failure) = judge(&Deadlines::default(), &health)
        {
            bail!("{failure}: {}", known.why);
        }
        let mut observed = observe(boot, &device, &network, &update, &known);
        observed.settle(&told, machine::wall_seconds());
        // A report without our id would be refused.
        if known.device.is_some() && observed != told {
            let context = info::Context { now: SystemTime::now(), properties: None, gauges: None };
            reports.info_all(info::messages(&observed, context));
            told = observed;
        }
    }
}

/// What is known while the vault is closed.
#[derive(Debug, Default)]
struct Known {
    why: String,
    device: Option<Uuid>,
    attestation: AttestationState,
    attestation_error: String,
}

/// Starts the controller's side: who this device is, then attestation for keys, again and again.
fn ask(
    client: Rc<Client>,
    device: Rc<Device>,
    reports: Rc<ReportQueue>,
    mut addresses: watch::Receiver<session::Addresses>,
) -> mpsc::Receiver<News> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::task::spawn_local(async move {
        session::wait_for_address(&mut addresses).await;
        let news = sender.clone();
        let onboarded = onboard(&client, device.as_ref(), |progress| {
            if let Progress::Failed { step, failure, .. } = progress {
                let _ = news.try_send(News::Trouble(format!("onboarding, {step:?}: {failure}")));
            }
        })
        .await;
        let _ = sender.send(News::Device(onboarded.uuid)).await;
        let reporting = {
            let (client, device, news) = (client.clone(), device.clone(), sender.clone());
            async move {
                let heard = |refusal: holdfast_controller_client::reports::Refusal<'_>| {
                    let _ = news.try_send(News::Trouble(format!("{}: {}", refusal.what, refusal.failure)));
                };
                match reports.run(&client, device.as_ref(), heard).await {}
            }
        };
        tokio::task::spawn_local(reporting);
        loop {
            let news = sender.clone();
            let attested = attest_until_done(&client, device.as_ref(), |state, error| {
                let _ = news.try_send(News::Attestation { state, error: error.to_owned() });
            })
            .await;
            if sender.send(News::Keys(attested.escrowed)).await.is_err() {
                return;
            }
            sleep(ASK_AGAIN).await;
        }
    });
    receiver
}

/// What the first key gives that opens; else what is wrong with all of them.
fn first_that_fits<K, V>(keys: &[K], mut open: impl FnMut(&K) -> Result<V>) -> std::result::Result<V, String> {
    let mut refusals = Vec::new();
    for key in keys {
        match open(key) {
            Ok(opened) => return Ok(opened),
            Err(e) => refusals.push(format!("{e:#}")),
        }
    }
    if refusals.is_empty() {
        return Err("the controller keeps no key for this device".into());
    }
    Err(refusals.join("; "))
}

fn observe(boot: &Boot, device: &Device, network: &Network, update: &Update, known: &Known) -> Observed {
    let strength = device.identity().strength();
    let closed = trust::VaultState::Closed { why: known.why.clone() };
    let trial = update.in_trial();
    let trust = trust::status(boot, &strength, &closed, device.pcrs());
    let slots = update.slots();
    Observed {
        device: holdfast_model::observed::DeviceStatus {
            state: if trial { DeviceState::Updating } else { DeviceState::Maintenance },
            troubles: reports::device_troubles(&trust, &slots, &known.attestation_error),
            trust,
            slots,
            last_reboot: power::last_boot(&boot.facts, None),
            attestation: known.attestation,
            maintenance: if trial { String::new() } else { known.why.clone() },
            ..reports::machine_status(boot, known.device)
        },
        ports: network.ports(),
        ..Observed::default()
    }
}

fn say(text: &str) {
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_tried_until_one_fits_and_all_that_do_not_are_named() {
        let open = |key: &u8| match key {
            7 => Ok("open"),
            n => Err(anyhow::anyhow!("key {n} is another vault's")),
        };
        assert_eq!(first_that_fits(&[1, 7, 2], open), Ok("open"));
        assert_eq!(first_that_fits(&[1, 2], open), Err("key 1 is another vault's; key 2 is another vault's".into()));
        assert_eq!(first_that_fits(&[], open), Err("the controller keeps no key for this device".into()));
    }
}
