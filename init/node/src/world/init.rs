//! PID 1, apart from starting and stopping units: its events, its log, the heartbeat, reboots.

use super::Local;
use crate::kernel::Progress;
use crate::part::Event;
use holdfast_supervise::{AsyncClient, AsyncSubscription, CallError, Event as InitEvent, Logs};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::sleep;

/// How often PID 1 is told that the loop goes on; it restarts the agent after a minute without.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Before subscribing again.
const AGAIN: Duration = Duration::from_millis(200);
/// Most log lines of one answer.
const LINES: u32 = 200;

/// What the agent asks of PID 1 besides its units.
pub trait Init {
    /// Log lines after a cursor, some 200 at most.
    fn logs(&self, after: u64) -> Local<Result<Logs, String>>;
    /// Says that the loop goes on.
    fn heartbeat(&self) -> Local<Result<(), String>>;
    /// Begins an orderly reboot of the machine.
    fn reboot(&self, reason: String) -> Local<Result<(), String>>;
}

/// PID 1 itself.
impl Init for Rc<AsyncClient> {
    fn logs(&self, after: u64) -> Local<Result<Logs, String>> {
        let client = self.clone();
        Box::pin(async move { AsyncClient::logs(&client, after, None, LINES).await.map_err(|e| e.to_string()) })
    }

    fn heartbeat(&self) -> Local<Result<(), String>> {
        let client = self.clone();
        Box::pin(async move { AsyncClient::heartbeat(&client).await.map_err(|e| e.to_string()) })
    }

    fn reboot(&self, reason: String) -> Local<Result<(), String>> {
        let client = self.clone();
        Box::pin(async move { AsyncClient::reboot(&client, reason).await.map_err(|e| e.to_string()) })
    }
}

/// Tells PID 1 for ever that the kernel goes on, for as long as it does.
pub async fn beat(init: Rc<dyn Init>, progress: Progress) {
    let mut seen = None;
    loop {
        let turns = progress.turns();
        // A kernel that stands still is what PID 1 is there to notice.
        if seen.replace(turns) != Some(turns)
            && let Err(e) = init.heartbeat().await
        {
            eprintln!("heartbeat: {e}; tried again in {} s", HEARTBEAT.as_secs());
        }
        sleep(HEARTBEAT).await;
    }
}

/// Feeds the kernel with PID 1's events for ever: first all units, then each change, and all units again after a lost event.
pub async fn watch(socket: PathBuf, client: Rc<AsyncClient>, events: mpsc::UnboundedSender<Event>) {
    let mut said = false;
    loop {
        if let Err(e) = follow(&socket, &client, &events).await
            && !std::mem::replace(&mut said, true)
        {
            eprintln!("PID 1: {e}; asked again");
        }
        sleep(AGAIN).await;
    }
}

async fn follow(
    socket: &std::path::Path,
    client: &AsyncClient,
    events: &mpsc::UnboundedSender<Event>,
) -> Result<(), CallError> {
    let mut subscription = AsyncSubscription::connect(socket).await?;
    let units = client.list().await?;
    let _ = events.send(Event::Units(units.into()));
    let _ = events.send(Event::Logs);
    // An error means that PID 1 dropped a slow subscriber: the caller begins again.
    while let Ok(event) = subscription.next().await {
        let event = match event {
            InitEvent::Unit(status) => Event::Unit(Rc::new(*status)),
            InitEvent::Removed { name } => Event::UnitRemoved(name),
            InitEvent::Logs { .. } => Event::Logs,
            InitEvent::Shutdown { .. } => continue,
        };
        let _ = events.send(event);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Counts heartbeats.
    #[derive(Clone, Default)]
    struct Counting(Rc<Cell<u32>>);

    impl Init for Counting {
        fn logs(&self, _: u64) -> Local<Result<Logs, String>> {
            Box::pin(async { Err("no log".into()) })
        }
        fn heartbeat(&self) -> Local<Result<(), String>> {
            self.0.set(self.0.get() + 1);
            Box::pin(async { Ok(()) })
        }
        fn reboot(&self, _: String) -> Local<Result<(), String>> {
            Box::pin(async { Ok(()) })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_kernel_that_stands_still_gets_no_heartbeat() {
        let (counting, progress) = (Counting::default(), Progress::default());
        let count = counting.0.clone();
        let turning = async {
            for _ in 0..19 {
                progress.advance();
                sleep(Duration::from_secs(1)).await;
            }
            let beats = count.get();
            sleep(Duration::from_secs(100)).await;
            (beats, count.get())
        };
        tokio::select! {
            () = beat(Rc::new(counting), progress.clone()) => {}
            (while_it_turned, after) = turning => {
                assert_eq!(while_it_turned, 4);
                assert!(after <= 5, "{after}");
            }
        }
    }
}
