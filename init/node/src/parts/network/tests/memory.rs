//! A kernel in memory.

use crate::parts::network::host::{Host, Interface, Sight};
use crate::world::Local;
use holdfast_engine::{Action, Graph, Item as _};
use holdfast_model::contract::network::Lease;
use holdfast_plan::{ItemKey, LinkFact, NetItem};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::{pending, ready};

/// A kernel with two cards; a DHCP server is where a test says.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) exists: RefCell<Graph<NetItem>>,
    pub(super) did: RefCell<Vec<String>>,
    /// Operations on an item whose name contains this never end.
    pub(super) hangs: RefCell<Option<&'static str>>,
    pub(super) leases: RefCell<BTreeMap<String, Lease>>,
    pub(super) unreadable: RefCell<u32>,
}

pub(super) fn cards() -> Vec<LinkFact> {
    [("eth0", 1), ("eth1", 2)]
        .map(|(name, n)| LinkFact { name: name.into(), mac: [2, 0, 0, 0, 0, n], pci: String::new() })
        .into()
}

impl Memory {
    pub(super) fn did(&self, what: &str) -> usize {
        self.did.borrow().iter().filter(|did| did.contains(what)).count()
    }

    pub(super) fn forget(&self) {
        self.did.borrow_mut().clear();
    }
}

impl Host for Memory {
    fn look(&self) -> Local<Result<Sight, String>> {
        let interface =
            |c: &LinkFact| (c.name.clone(), Interface { mac: c.mac, up: true, carrier: true, physical: true });
        let interfaces = cards().iter().map(interface).collect();
        Box::pin(ready(Ok(Sight { cards: cards(), interfaces })))
    }
    fn leases(&self) -> Local<BTreeMap<String, Lease>> {
        Box::pin(ready(self.leases.borrow().clone()))
    }
    fn discover(&self, _: Graph<NetItem>) -> Local<Result<Graph<NetItem>, String>> {
        let left = self.unreadable.replace_with(|left| left.saturating_sub(1));
        let found = if left > 0 { Err("EAGAIN".to_owned()) } else { Ok(self.exists.borrow().clone()) };
        Box::pin(ready(found))
    }
    fn lost(&self, believed: Graph<NetItem>) -> Local<Result<Vec<ItemKey>, String>> {
        let exists = self.exists.borrow();
        let missing = believed.iter().filter(|(key, item)| !item.external() && !exists.contains(key));
        Box::pin(ready(Ok(missing.map(|(key, _)| key.clone()).collect())))
    }
    fn run(&self, actions: Vec<Action<NetItem>>) -> Local<Vec<Result<(), String>>> {
        for action in &actions {
            let text = format!("{} {}", action.verb(), action.key());
            if self.hangs.borrow().is_some_and(|hangs| text.contains(hangs)) {
                return Box::pin(pending());
            }
            self.did.borrow_mut().push(text);
            let mut exists = self.exists.borrow_mut();
            match action {
                Action::Delete(item) => drop(exists.remove(&item.key())),
                other => drop(exists.insert(other.item().clone())),
            }
        }
        Box::pin(ready(actions.iter().map(|_| Ok(())).collect()))
    }
    fn tell_carrier(&self, interface: String, up: bool) -> Local<()> {
        self.did.borrow_mut().push(format!("carrier of {interface}: {up}"));
        Box::pin(ready(()))
    }
    fn write_hosts(&self, text: String) -> Local<Result<(), String>> {
        self.did.borrow_mut().push(format!("hosts {}", text.lines().count()));
        Box::pin(ready(Ok(())))
    }
}
