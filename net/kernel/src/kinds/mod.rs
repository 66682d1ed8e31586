//! How the kernel gets the items that `net/plan` describes: one file per kind, under the same name as there.

use crate::address::Found;
use crate::driver::{DriverError, NetDriver, Services};
use crate::error::NetlinkError;
use crate::link::Link;
use crate::netlink::Netlink;
use crate::nft::Messages;
use holdfast_engine::Graph;
use holdfast_plan::for_each_kind;
use holdfast_plan::kinds::{Kind, NetItem};

/// What can be done with the items of a kind. Idempotent, each within a deadline.
pub(crate) trait Actuator: Kind {
    /// Creates it; all that it needs exists. With `before`: changes it in place, where [`Kind::transition`] said so.
    async fn ensure<S: Services>(&self, before: Option<&Self>, driver: &NetDriver<S>) -> Result<(), DriverError>;

    /// Removes it; nothing that needs it exists. It may exist in part, or not at all.
    async fn remove<S: Services>(&self, driver: &NetDriver<S>) -> Result<(), DriverError>;

    /// The items of this kind that exist and are ours. Those that carry no mark of their own (physical ports, kernel
    /// variables, the resolver) are looked for where the intended graph names them.
    async fn found<S: Services>(sight: &Sight<'_, S>) -> Result<Vec<Self>, NetlinkError>;
}

/// Items that are parts of transactions of nftables.
pub(crate) trait Part: Kind {
    /// Creates it or gives it its value; what exists of it is no error.
    fn created(&self) -> Messages;

    /// Removes it; that it does not exist is no error.
    fn removed(&self) -> Messages;

    /// Those that exist in our tables.
    fn found(nft: &Netlink) -> Result<Vec<Self>, NetlinkError>;
}

/// What discovery looks at, read once.
pub(crate) struct Sight<'a, S> {
    pub(crate) links: Vec<Link>,
    pub(crate) addresses: Vec<Found>,
    pub(crate) intended: &'a Graph<NetItem>,
    pub(crate) driver: &'a NetDriver<S>,
}

impl<'a, S: Services> Sight<'a, S> {
    pub(crate) async fn new(
        driver: &'a NetDriver<S>,
        intended: &'a Graph<NetItem>,
    ) -> Result<Sight<'a, S>, NetlinkError> {
        let (links, addresses) = (driver.rtnl.links().await?, driver.rtnl.addresses().await?);
        Ok(Self { links, addresses, intended, driver })
    }

    /// Interfaces of that kind (empty: hardware) that this program made.
    pub(crate) fn ours<'s>(&'s self, kind: &'s str) -> impl Iterator<Item = &'s Link> {
        self.links.iter().filter(move |l| l.ours && l.kind == kind)
    }

    pub(crate) fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|l| l.index == index)
    }

    pub(crate) fn name_of(&self, index: u32) -> Option<String> {
        self.link(index).map(|l| l.name.clone())
    }
}

macro_rules! define {
    (
        links { $($link_module:ident :: $Link:ident),* }
        others { $($other_module:ident :: $Other:ident),* }
        nftables { $($table_module:ident :: $Table:ident),* }
        external { $($external_module:ident :: $External:ident),* }
    ) => {
        $(mod $link_module;)*
        $(mod $other_module;)*
        $(mod $table_module;)*
        use holdfast_plan::kinds::{$($Link,)* $($Other,)* $($Table,)*};

        /// Creates or changes an item.
        pub(crate) async fn ensure<S: Services>(
            driver: &NetDriver<S>,
            before: Option<&NetItem>,
            item: &NetItem,
        ) -> Result<(), DriverError> {
            match (before, item) {
                $((Some(NetItem::$Link(before)), NetItem::$Link(item)) => item.ensure(Some(before), driver).await,)*
                $((_, NetItem::$Link(item)) => item.ensure(None, driver).await,)*
                $((Some(NetItem::$Other(before)), NetItem::$Other(item)) => item.ensure(Some(before), driver).await,)*
                $((_, NetItem::$Other(item)) => item.ensure(None, driver).await,)*
                // Parts of transactions and what exists by itself are never given to this function.
                $((_, NetItem::$Table(_)) => Ok(()),)*
                $((_, NetItem::$External(_)) => Ok(()),)*
            }
        }

        /// Removes an item.
        pub(crate) async fn remove<S: Services>(driver: &NetDriver<S>, item: &NetItem) -> Result<(), DriverError> {
            match item {
                $(NetItem::$Link(item) => item.remove(driver).await,)*
                $(NetItem::$Other(item) => item.remove(driver).await,)*
                $(NetItem::$Table(_) => Ok(()),)*
                $(NetItem::$External(_) => Ok(()),)*
            }
        }

        /// What creates or changes an item that is part of a transaction.
        pub(crate) fn created(item: &NetItem) -> Messages {
            match item {
                $(NetItem::$Table(item) => item.created(),)*
                _ => Messages::new(),
            }
        }

        /// What removes an item that is part of a transaction.
        pub(crate) fn removed(item: &NetItem) -> Messages {
            match item {
                $(NetItem::$Table(item) => item.removed(),)*
                _ => Messages::new(),
            }
        }

        /// Everything of all kinds that exists and is ours.
        pub(crate) async fn found<S: Services>(sight: &Sight<'_, S>) -> Result<Graph<NetItem>, NetlinkError> {
            let mut graph = Graph::new();
            $(graph.extend($Link::found(sight).await?.into_iter().map(NetItem::from));)*
            $(graph.extend($Other::found(sight).await?.into_iter().map(NetItem::from));)*
            $(graph.extend($Table::found(&sight.driver.nft())?.into_iter().map(NetItem::from));)*
            Ok(graph)
        }
    };
}

for_each_kind!(define);
