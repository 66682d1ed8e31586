//! The activated network card: which pairs exist and which are in use.
//!
//! ```text
//!  start: pair 0 runs, the others stand still     driver: VQ_PAIRS_SET n     pairs 0..n run, the others stand still
//! ```
//!
//! A pair that stands still is disabled on the cable as well, so that no frame is steered to where nobody looks.

use std::time::Instant;

use holdfast_links::Link;

use super::control::{Command, ControlQueue};
use super::device::{Lane, Net, NetOptions};
use super::features;
use super::pair::UserPair;
use super::vhost_pair::VhostPair;
use crate::rate::Limiter;
use crate::virtio::queue::VirtQueue;
use crate::virtio::vhost::rings::Rings;
use crate::virtio::{Activation, ActiveDevice, Device, DeviceFault, Progress, Source};
use holdfast_model::contract::vm::DeviceStats;

/// Tokens of each pair's sources.
const TOKENS: u8 = 4;
/// A pair's tokens, from its first on: the receive queue's doorbell,
pub(super) const RECEIVE: u8 = 0;
/// the transmit queue's doorbell,
pub(super) const TRANSMIT: u8 = 1;
/// and the cable.
pub(super) const LINK: u8 = 2;
/// Token of the control queue's doorbell.
pub(super) const CONTROL: u8 = 0xff;

/// What all pairs of a card may do together; `None` is no limit.
pub(super) struct Limiters {
    pub(super) receive: Option<Limiter>,
    pub(super) transmit: Option<Limiter>,
}

/// What works the rings of one queue pair. Starts and stops alternate, beginning with a start.
pub(super) trait Pair: Send {
    /// Its end of the cable.
    fn link(&mut self) -> &mut dyn Link;
    /// As [`ActiveDevice::sources`].
    fn sources(&self) -> Vec<Source>;
    /// As [`ActiveDevice::ready`]; nothing happens while it stands still.
    fn ready(&mut self, token: u8, limiters: &mut Limiters) -> Result<Progress, DeviceFault>;
    /// As [`ActiveDevice::deadline`].
    fn deadline(&self) -> Option<Instant> {
        None
    }
    /// As [`ActiveDevice::expired`].
    fn expired(&mut self, _: &mut Limiters) -> Result<(), DeviceFault> {
        Ok(())
    }
    /// Goes on where it stopped, and looks for work that came meanwhile.
    fn start(&mut self) -> Result<(), DeviceFault>;
    /// Touches guest memory no more.
    fn stop(&mut self) -> Result<(), DeviceFault>;
    /// The back end, of a pair that stands still.
    fn finish(self: Box<Self>) -> Lane;
    /// Counters.
    fn stats(&self) -> DeviceStats;
}

/// One pair of the card.
enum Place {
    /// The driver set up no queues for it.
    Empty(Lane),
    /// It can be used.
    Filled(Box<dyn Pair>),
}

pub(super) struct ActiveNet {
    options: NetOptions,
    places: Vec<Place>,
    /// The first so many run, unless the card is paused.
    in_use: usize,
    paused: bool,
    control: Option<ControlQueue>,
    limiters: Limiters,
    /// Who is first when a limit has room again.
    turn: usize,
}

impl ActiveNet {
    pub(super) fn start(net: Net, mut activation: Activation) -> Result<Self, DeviceFault> {
        let Net { options, mut lanes, .. } = net;
        let name = options.name.clone();
        let accepted = activation.features;
        if let Some(reason) = features::broken_rule(accepted) {
            return Err(DeviceFault::Guest { device: name, reason });
        }
        for (index, lane) in lanes.iter_mut().enumerate() {
            let set = lane.link().set_enabled(index == 0);
            set.map_err(DeviceFault::host(&name, "choose the pairs of the cable"))?;
        }
        if let Some(lane) = lanes.first_mut() {
            let set = lane.link().set_offloads(features::guest_offloads(accepted));
            set.map_err(DeviceFault::host(&name, "set the offloads of the cable"))?;
        }
        // virtio 1.3 §5.1.2: the control queue comes after the pairs that the driver knows of.
        let known = if accepted & features::MQ != 0 { lanes.len() } else { 1 };
        let index_of = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
        let control = if accepted & features::CTRL_VQ != 0 {
            activation.take_queue(index_of(2 * known)).map(|queue| ControlQueue::new(&name, queue))
        } else {
            None
        };
        let mut places = Vec::new();
        for (n, lane) in lanes.into_iter().enumerate() {
            let queues = if n == 0 {
                Some([activation.needed_queue(0, &name)?, activation.needed_queue(1, &name)?])
            } else if n < known {
                // "Up to N of each kind" (§5.1.5): a driver need not set up all.
                activation.take_queue(index_of(2 * n)).zip(activation.take_queue(index_of(2 * n + 1))).map(Into::into)
            } else {
                None
            };
            let first_token = u8::try_from(n).unwrap_or(0) * TOKENS;
            places.push(match queues {
                None => Place::Empty(lane),
                Some(queues) => Place::Filled(pair(lane, &name, queues, &activation, first_token)?),
            });
        }
        let now = Instant::now();
        let limiters =
            Limiters { receive: Limiter::new(&options.receive, now), transmit: Limiter::new(&options.transmit, now) };
        let mut active = Self { options, places, in_use: 0, paused: false, control, limiters, turn: 0 };
        active.use_pairs(1)?;
        Ok(active)
    }

    fn filled(&mut self) -> impl Iterator<Item = &mut Box<dyn Pair>> {
        self.places.iter_mut().filter_map(|place| match place {
            Place::Filled(pair) => Some(pair),
            Place::Empty(_) => None,
        })
    }

    /// Starts and stops pairs, so that the first `count` run. `false` when there are not so many.
    fn use_pairs(&mut self, count: usize) -> Result<bool, DeviceFault> {
        let there = self.places.iter().take_while(|place| matches!(place, Place::Filled(_))).count();
        if count > there {
            return Ok(false);
        }
        let (before, name) = (std::mem::replace(&mut self.in_use, count), self.options.name.clone());
        let fail = DeviceFault::host(&name, "choose the pairs of the cable");
        for (n, pair) in self.filled().enumerate().take(there) {
            match (n < before, n < count) {
                (false, true) => {
                    pair.link().set_enabled(true).map_err(&fail)?;
                    pair.start()?;
                }
                (true, false) => {
                    pair.stop()?;
                    pair.link().set_enabled(false).map_err(&fail)?;
                }
                _ => {}
            }
        }
        Ok(true)
    }

    fn control(&mut self) -> Result<Progress, DeviceFault> {
        let Some(mut control) = self.control.take() else {
            return Ok(Progress::Drained);
        };
        let result = control.run(|command| match command {
            Command::SetPairs(count) => self.use_pairs(usize::from(count)),
        });
        self.control = Some(control);
        result
    }
}

/// The queues of one pair with their back end.
fn pair(
    lane: Lane,
    name: &str,
    queues: [VirtQueue; 2],
    activation: &Activation,
    first_token: u8,
) -> Result<Box<dyn Pair>, DeviceFault> {
    let accepted = activation.features;
    Ok(match lane {
        Lane::User(link) => Box::new(UserPair::new(link, name, queues, accepted, first_token)),
        Lane::Vhost(tap, vhost) => {
            let (ram, interrupts) = ((&*activation.ram, accepted), activation.interrupts.clone());
            let rings = Rings::set_up(vhost.common(), name, queues.into(), ram, interrupts, first_token)?;
            Box::new(VhostPair::new(name, tap, vhost, rings))
        }
    })
}

impl ActiveDevice for ActiveNet {
    fn sources(&self) -> Vec<Source> {
        let pairs = self.places.iter().flat_map(|place| match place {
            Place::Filled(pair) => pair.sources(),
            Place::Empty(_) => Vec::new(),
        });
        let control = self.control.as_ref().map(|control| Source::input(control.queue().kick_fd(), CONTROL));
        pairs.chain(control).collect()
    }

    fn ready(&mut self, token: u8) -> Result<Progress, DeviceFault> {
        if token == CONTROL {
            return self.control();
        }
        match self.places.get_mut(usize::from(token / TOKENS)) {
            Some(Place::Filled(pair)) => pair.ready(token, &mut self.limiters),
            _ => Ok(Progress::Drained),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let of = |place: &Place| match place {
            Place::Filled(pair) => pair.deadline(),
            Place::Empty(_) => None,
        };
        self.places.iter().filter_map(of).min()
    }

    /// Another pair begins each time, so that none takes all of a limit.
    fn expired(&mut self) -> Result<(), DeviceFault> {
        self.turn = self.turn.wrapping_add(1);
        for n in 0..self.in_use {
            let place = self.turn.wrapping_add(n) % self.in_use;
            if let Some(Place::Filled(pair)) = self.places.get_mut(place) {
                pair.expired(&mut self.limiters)?;
            }
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<(), DeviceFault> {
        self.paused = true;
        let in_use = self.in_use;
        self.filled().take(in_use).try_for_each(|pair| pair.stop())
    }

    fn resume(&mut self) -> Result<(), DeviceFault> {
        self.paused = false;
        let in_use = self.in_use;
        self.filled().take(in_use).try_for_each(|pair| pair.start())?;
        if let Some(control) = &self.control {
            control.queue().ring_self();
        }
        Ok(())
    }

    fn deactivate(mut self: Box<Self>) -> Result<Box<dyn Device>, DeviceFault> {
        if !self.paused {
            self.use_pairs(0)?;
        }
        let lanes = self.places.into_iter().map(|place| match place {
            Place::Filled(pair) => pair.finish(),
            Place::Empty(lane) => lane,
        });
        Ok(Box::new(Net::new(lanes.collect(), self.options)))
    }

    fn stats(&self) -> DeviceStats {
        let mut sum = DeviceStats::default();
        for place in &self.places {
            if let Place::Filled(pair) = place {
                let stats = pair.stats();
                sum.out_bytes += stats.out_bytes;
                sum.in_bytes += stats.in_bytes;
                sum.out_ops += stats.out_ops;
                sum.in_ops += stats.in_ops;
                sum.errors += stats.errors;
            }
        }
        sum
    }
}
