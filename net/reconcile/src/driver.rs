//! What the reconciler acts through.

use crate::graph::Item;
use std::fmt::Display;
use std::future::Future;

/// Executes actions on real things.
///
/// Every method is idempotent: creating what is already there as asked, and deleting what is already gone, succeed.
/// Every method returns within a deadline of its own; the reconciler waits for it before the next action.
pub trait Driver<I: Item> {
    /// Its text reaches the state of the failed item.
    type Error: Display;

    /// Makes the item. All its dependencies exist.
    fn create(&mut self, item: &I) -> impl Future<Output = Result<(), Self::Error>>;

    /// Changes the item in place. Called only where [`Item::transition`] said `Modify`.
    fn modify(&mut self, old: &I, new: &I) -> impl Future<Output = Result<(), Self::Error>>;

    /// Removes the item. Nothing that depends on it exists. The item may be there in part, or not at all.
    fn delete(&mut self, item: &I) -> impl Future<Output = Result<(), Self::Error>>;
}
