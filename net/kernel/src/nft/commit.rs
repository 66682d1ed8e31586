//! Transactions: all of it happens or nothing, and none is larger than a socket takes.

use super::Messages;
use crate::driver::DriverError;
use crate::error::NetlinkError;
use crate::kinds;
use crate::netlink::Netlink;
use holdfast_engine::Action;
use holdfast_plan::kinds::NetItem;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of one transaction, far below the send buffer of the socket. Actions beyond it go into the next transaction: in the
/// order of the engine each state between them is a firewall that lets through no more than was there before or is wanted.
const TRANSACTION_BYTES: usize = 1 << 20;

/// What the actions tell the kernel.
#[must_use]
pub fn messages(action: &Action<NetItem>) -> Messages {
    match action {
        Action::Create(item) | Action::Modify { new: item, .. } => kinds::created(item),
        Action::Delete(item) => kinds::removed(item),
    }
}

/// Groups actions (by the number of bytes each sends) into transactions: how many actions each takes.
fn split(sizes: &[usize]) -> Vec<usize> {
    let mut counts: Vec<usize> = Vec::new();
    let mut room = 0;
    for size in sizes {
        match counts.last_mut().filter(|_| *size <= room) {
            Some(count) => *count += 1,
            None => {
                counts.push(1);
                room = TRANSACTION_BYTES;
            }
        }
        room = room.saturating_sub(*size);
    }
    counts
}

/// Carries the actions out, on a thread of its own: the kernel works while it is told. After a transaction that failed, those
/// behind it are not begun.
pub(crate) async fn commit(socket: &Arc<Mutex<Netlink>>, actions: &[Action<NetItem>]) -> Vec<Result<(), DriverError>> {
    let mut lists: Vec<Messages> = actions.iter().map(messages).collect();
    let sizes: Vec<usize> = lists.iter().map(|l| l.iter().map(|(_, m)| m.size()).sum()).collect();
    let mut results: Vec<Result<(), DriverError>> = Vec::new();
    for count in split(&sizes) {
        let rest = lists.split_off(count.min(lists.len()));
        let items: Messages = std::mem::replace(&mut lists, rest).into_iter().flatten().collect();
        let socket = socket.clone();
        let task = tokio::task::spawn_blocking(move || {
            socket.lock().unwrap_or_else(PoisonError::into_inner).transaction("change the firewall", items)
        });
        let done = match task.await {
            Ok(done) => done,
            Err(_) => Err(NetlinkError::Malformed { what: "change the firewall".into() }),
        };
        match done {
            Ok(()) => results.extend((0..count).map(|_| Ok(()))),
            Err(error) => {
                let text = error.to_string();
                results.resize_with(actions.len(), || Err(DriverError::Firewall(text.clone())));
                break;
            }
        }
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_stay_small_and_keep_the_order() {
        let third = TRANSACTION_BYTES / 3;
        assert_eq!(split(&[third, third, third, third]), [3, 1]);
        assert_eq!(split(&[10, 2 * TRANSACTION_BYTES, 10]), [1, 1, 1]);
        assert_eq!(split(&[]), [0; 0]);
    }
}
