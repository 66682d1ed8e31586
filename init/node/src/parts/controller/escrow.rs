//! The session while the vault is closed: who this device is, then attestation for the keys in escrow, again and again.

use super::SessionEvent;
use super::reports::Reporter;
use super::session::{Inputs, client, on_thread, wait_for_address};
use crate::part::Event;
use crate::parts::network::facts::Uplinks;
use crate::parts::vault::Keys;
use anyhow::{Context, Result, bail};
use holdfast_controller_client::identity::EscrowKey;
use holdfast_controller_client::onboarding::Progress;
use holdfast_controller_client::{Client, ReportQueue, attest_until_done, onboard};
use holdfast_model::properties::Properties;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

/// Between two times of asking a controller that gave no key that fits.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// Hands keys to the kernel for ever.
pub async fn forward(mut keys: mpsc::UnboundedReceiver<Vec<EscrowKey>>, kernel: mpsc::UnboundedSender<Event>) {
    while let Some(keys) = keys.recv().await {
        let _ = kernel.send(Event::News(Rc::new(Keys(keys))));
    }
}

/// Starts it on a thread of its own. It ends when nobody takes its keys any more.
///
/// # Errors
/// When SITE names no controller or is unusable: nobody can be asked for a key.
pub fn spawn(inputs: Inputs, keys: mpsc::UnboundedSender<Vec<EscrowKey>>) -> Result<()> {
    if client(&inputs.boot, &inputs.device)?.is_none() {
        bail!("the vault stays closed, and SITE names no controller to ask");
    }
    // Nothing is stored outside of the vault.
    let _ = inputs.events.send(SessionEvent::Stored(None));
    on_thread(move || async move {
        tokio::select! {
            asked = ask(&inputs, &keys) => if let Err(e) = asked {
                let _ = inputs.events.send(SessionEvent::Trouble(format!("the controller is not called: {e:#}")));
            },
            () = keys.closed() => {}
        }
    })
}

async fn ask(inputs: &Inputs, keys: &mpsc::UnboundedSender<Vec<EscrowKey>>) -> Result<()> {
    let client = Rc::new(client(&inputs.boot, &inputs.device)?.context("SITE names no controller")?);
    let (device, events) = (inputs.device.as_ref(), &inputs.events);
    let mut uplinks = inputs.uplinks.clone();
    wait_for_address(&mut uplinks).await;
    client.set_uplinks(uplinks.borrow_and_update().0.clone());
    tokio::task::spawn_local(follow_uplinks(client.clone(), uplinks));
    let onboarded = onboard(&client, device, |progress| {
        if let Progress::Failed { step, failure, .. } = progress {
            let _ = events.send(SessionEvent::Trouble(format!("onboarding, {step:?}: {failure}")));
        }
    })
    .await;
    let _ = events.send(SessionEvent::Device(onboarded.uuid));
    report(&client, inputs);
    loop {
        let attested = attest_until_done(&client, device, |state, error| {
            let _ = events.send(SessionEvent::Attestation { state, error: error.to_owned() });
        })
        .await;
        let _ = keys.send(attested.escrowed);
        sleep(ASK_AGAIN).await;
    }
}

async fn follow_uplinks(client: Rc<Client>, mut uplinks: watch::Receiver<Uplinks>) {
    while uplinks.changed().await.is_ok() {
        client.set_uplinks(uplinks.borrow_and_update().0.clone());
    }
}

fn report(client: &Rc<Client>, inputs: &Inputs) {
    let (reports, (_, properties)) = (Rc::new(ReportQueue::new()), watch::channel(Properties::default()));
    let reporter = Reporter::new(client.clone(), reports.clone(), properties, Rc::default(), inputs);
    tokio::task::spawn_local(reporter.run());
    let (client, device, events) = (client.clone(), inputs.device.clone(), inputs.events.clone());
    tokio::task::spawn_local(async move {
        let refused = |refusal: holdfast_controller_client::reports::Refusal<'_>| {
            let _ = events.send(SessionEvent::Trouble(format!("{}: {}", refusal.what, refusal.failure)));
        };
        match reports.run(&client, device.as_ref(), refused).await {}
    });
}
