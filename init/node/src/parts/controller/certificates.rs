//! The controller's certificates, kept fresh.

use super::SessionEvent;
use holdfast_controller_client::{Client, ConfigStore, timing};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

/// Reads the certificates again when the config names others (`wanted` is their hash), and after a day (`timer.cert.interval`); soon
/// again after a failure.
pub(super) async fn keep_fresh(
    client: Rc<Client>,
    store: ConfigStore,
    events: mpsc::UnboundedSender<SessionEvent>,
    mut wanted: watch::Receiver<String>,
) {
    let mut held = wanted.borrow().clone();
    let mut last = (Instant::now(), true);
    loop {
        let changed = *wanted.borrow_and_update() != held;
        let due = last.0 + wait(last.1, changed, client.timing().certificates);
        if Instant::now() < due {
            tokio::select! {
                // The interval may have been changed too: looked at again in a minute at the latest.
                () = sleep(due.saturating_duration_since(Instant::now()).min(Duration::from_secs(60))) => {}
                ended = wanted.changed() => if ended.is_err() { return },
            }
            continue;
        }
        let hash = wanted.borrow().clone();
        let text = match client.fetch_certificates().await {
            Ok(list) => {
                held = hash;
                let kept = store.save_certificates(&list);
                kept.err().map(|e| format!("the controller's certificates are not kept: {e}"))
            }
            Err(e) => Some(format!("the controller's certificates cannot be read: {e}")),
        };
        last = (Instant::now(), text.is_none());
        if let Some(text) = text {
            let _ = events.send(SessionEvent::Trouble(text));
        }
    }
}

/// Time from one reading to the next: `well` tells how the last one went, `changed` that others are named.
fn wait(well: bool, changed: bool, interval: Duration) -> Duration {
    match (well, changed) {
        (false, _) => timing::CERTIFICATES_RETRY.min(interval),
        (true, true) => Duration::ZERO,
        (true, false) => interval,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_read_again_when_others_are_named_when_old_and_after_a_failure() {
        let day = Duration::from_secs(86_400);
        assert_eq!(wait(true, false, day), day);
        assert_eq!(wait(true, true, day), Duration::ZERO);
        assert_eq!(wait(false, true, day), Duration::from_secs(120), "a failure is not tried again at once");
        assert_eq!(wait(false, false, day), Duration::from_secs(120));
    }
}
