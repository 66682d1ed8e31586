//! What the network of a device is made of, as items of a graph: one file per kind, under the same name here (what it is) and
//! in `net/kernel` (how the kernel gets it).
//!
//! [`for_each_kind`] lists them. A kind that is listed and has no file here, or none in `net/kernel`, does not compile.

use holdfast_engine::{Item, Need, Transition};
use std::convert::Infallible;
use std::fmt;
use uuid::Uuid;

/// The list of kinds, for a macro that takes `links` (they share the names of interfaces), `others`, `nftables` (they are
/// part of one transaction) and `external` (they exist by themselves), each as `module::Type`.
#[macro_export]
macro_rules! for_each_kind {
    ($make:ident) => {
        $make! {
            links { port::Port, vlan::Vlan, bridge::Bridge, tap::Tap }
            others {
                bridge_port::BridgePort, address::Address, route::Route, policy_rule::PolicyRule, sysctl::Sysctl,
                resolver::Resolver, service::Service
            }
            nftables {
                firewall_skeleton::FirewallSkeleton, firewall_counter::FirewallCounter, firewall_chain::FirewallChain,
                firewall_element::FirewallElement
            }
            external { card::Card, guest::Guest }
        }
    };
}

/// One thing of a kind, as it exists or should exist.
pub trait Kind: Clone + PartialEq + fmt::Debug + Into<NetItem> {
    /// Names it; see [`Item::key`].
    fn key(&self) -> ItemKey;

    /// What must exist for it to exist.
    fn needs(&self) -> Vec<ItemKey>;

    /// How it becomes `new`.
    fn transition(&self, new: &Self) -> Transition;

    /// What keeps its value as long as it exists; see [`Item::pinned_by`].
    fn pinned_by(&self) -> Option<ItemKey> {
        None
    }

    /// Its actions may go into one transaction with others of that name.
    fn batch(&self) -> Option<Batch> {
        None
    }

    /// The network instance or app that it belongs to.
    fn owner(&self) -> Option<Uuid> {
        None
    }
}

/// A kind with keys of its own.
pub trait Keyed: Kind {
    /// What tells one from another.
    type Key: Ord + Clone + fmt::Debug;

    /// What the key names, for people.
    fn describe(key: &Self::Key, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

/// Transactions that hold several items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Batch {
    /// nf_tables: all happens at once or nothing.
    Nftables,
}

macro_rules! define {
    (
        links { $($link_module:ident :: $Link:ident),* }
        others { $($other_module:ident :: $Other:ident),* }
        nftables { $($table_module:ident :: $Table:ident),* }
        external { $($external_module:ident :: $External:ident),* }
    ) => {
        $(pub mod $link_module; pub use $link_module::$Link;)*
        $(pub mod $other_module; pub use $other_module::$Other;)*
        $(pub mod $table_module; pub use $table_module::$Table;)*
        $(pub mod $external_module; pub use $external_module::$External;)*

        /// Names an item.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
        #[allow(missing_docs)] // The kinds say it.
        pub enum ItemKey {
            /// A network interface, physical or made by us, by its name.
            Link(String),
            $($Other(<$Other as Keyed>::Key),)*
            $($Table(<$Table as Keyed>::Key),)*
            $($External(<$External as Keyed>::Key),)*
        }

        impl fmt::Display for ItemKey {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    Self::Link(name) => write!(f, "interface {name}"),
                    $(Self::$Other(key) => $Other::describe(key, f),)*
                    $(Self::$Table(key) => $Table::describe(key, f),)*
                    $(Self::$External(key) => $External::describe(key, f),)*
                }
            }
        }

        /// One thing in the kernel or a service beside it.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs)] // The kinds say it.
        pub enum NetItem {
            $($Link($Link),)*
            $($Other($Other),)*
            $($Table($Table),)*
            $($External($External),)*
        }

        $(impl From<$Link> for NetItem { fn from(item: $Link) -> Self { Self::$Link(item) } })*
        $(impl From<$Other> for NetItem { fn from(item: $Other) -> Self { Self::$Other(item) } })*
        $(impl From<$Table> for NetItem { fn from(item: $Table) -> Self { Self::$Table(item) } })*
        $(impl From<$External> for NetItem { fn from(item: $External) -> Self { Self::$External(item) } })*

        macro_rules! of_kind {
            ($item:expr, $kind:ident => $what:expr) => {
                match $item {
                    $(NetItem::$Link($kind) => $what,)*
                    $(NetItem::$Other($kind) => $what,)*
                    $(NetItem::$Table($kind) => $what,)*
                    $(NetItem::$External($kind) => $what,)*
                }
            };
        }

        impl Item for NetItem {
            type Key = ItemKey;
            type Condition = Infallible;
            type Batch = Batch;
            type Owner = Uuid;

            fn key(&self) -> ItemKey {
                of_kind!(self, i => i.key())
            }

            fn needs(&self) -> Vec<Need<ItemKey, Infallible>> {
                of_kind!(self, i => i.needs()).into_iter().map(Need::exists).collect()
            }

            fn transition(&self, new: &Self) -> Transition {
                match (self, new) {
                    $((Self::$Link(old), Self::$Link(new)) => old.transition(new),)*
                    $((Self::$Other(old), Self::$Other(new)) => old.transition(new),)*
                    $((Self::$Table(old), Self::$Table(new)) => old.transition(new),)*
                    $((Self::$External(old), Self::$External(new)) => old.transition(new),)*
                    // An interface of one kind cannot become one of another.
                    _ => Transition::Recreate,
                }
            }

            fn external(&self) -> bool {
                match self {
                    $(Self::$External(_) => true,)*
                    _ => false,
                }
            }

            fn pinned_by(&self) -> Option<ItemKey> {
                of_kind!(self, i => i.pinned_by())
            }

            fn batch(&self) -> Option<Batch> {
                of_kind!(self, i => i.batch())
            }

            fn owner(&self) -> Option<Uuid> {
                of_kind!(self, i => i.owner())
            }
        }
    };
}

for_each_kind!(define);
