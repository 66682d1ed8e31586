//! Every effect on the simulated machine passes here: it takes time, may fail, may never end, and the agent or the power may be cut
//! right before or after it.

use holdfast_node::world::Local;
use std::cell::RefCell;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::sleep;

/// What is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The agent dies; PID 1, its units and the disk stay.
    Agent,
    /// The power fails: only the disk stays.
    Power,
}

/// A cut at an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutAt {
    /// The effect's number, from 1.
    pub effect: u32,
    /// The effect has taken place, and nobody has heard of it.
    pub after: bool,
    /// What is cut.
    pub what: Cut,
}

#[derive(Default)]
struct Inner {
    done: Vec<String>,
    count: u32,
    cut_at: Option<CutAt>,
    cut: Option<Cut>,
    cuts: u32,
    hang: Vec<String>,
    fail: Vec<String>,
    fail_percent: u64,
    random: u64,
}

/// The effects of one machine.
#[derive(Default)]
pub struct Effects {
    inner: RefCell<Inner>,
    cut: Notify,
}

impl Effects {
    /// Effects whose durations and failures follow from `seed`.
    pub fn new(seed: u64) -> Self {
        let effects = Self::default();
        effects.inner.borrow_mut().random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        effects
    }

    /// Cuts at an effect.
    pub fn cut_at(&self, cut: CutAt) {
        self.inner.borrow_mut().cut_at = Some(cut);
    }

    /// Effects whose name contains `what` never end from now on.
    pub fn hang(&self, what: &str) {
        self.inner.borrow_mut().hang.push(what.into());
    }

    /// Effects whose name contains `what` fail from now on.
    pub fn fail(&self, what: &str) {
        self.inner.borrow_mut().fail.push(what.into());
    }

    /// So many of a hundred effects fail from now on.
    pub fn fail_percent(&self, percent: u64) {
        self.inner.borrow_mut().fail_percent = percent;
    }

    /// No effect fails, hangs or is cut from now on; those that hang already go on hanging.
    pub fn heal(&self) {
        let mut inner = self.inner.borrow_mut();
        (inner.hang, inner.fail, inner.fail_percent, inner.cut_at) = (Vec::new(), Vec::new(), 0, None);
    }

    /// Number of effects so far.
    pub fn count(&self) -> u32 {
        self.inner.borrow().count
    }

    /// Number of cuts so far.
    pub fn cuts(&self) -> u32 {
        self.inner.borrow().cuts
    }

    /// How many effects of this name took place.
    pub fn times(&self, what: &str) -> usize {
        self.inner.borrow().done.iter().filter(|d| d.contains(what)).count()
    }

    /// A number below `bound`.
    pub fn random(&self, bound: u64) -> u64 {
        let mut inner = self.inner.borrow_mut();
        inner.random ^= inner.random << 13;
        inner.random ^= inner.random >> 7;
        inner.random ^= inner.random << 17;
        inner.random % bound
    }

    /// A short time.
    pub fn moment(&self) -> Duration {
        Duration::from_millis(self.random(40))
    }

    /// Waits for a cut and takes it.
    pub async fn wait_for_cut(&self) -> Cut {
        loop {
            self.cut.notified().await;
            if let Some(cut) = self.inner.borrow_mut().cut.take() {
                return cut;
            }
        }
    }

    /// Cuts now.
    pub fn cut(&self, cut: Cut) {
        let mut inner = self.inner.borrow_mut();
        // An agent that dies does not take a reboot back.
        if inner.cut != Some(Cut::Power) {
            inner.cut = Some(cut);
        }
        inner.cuts += 1;
        drop(inner);
        self.cut.notify_one();
    }

    fn begins(&self, what: &str) -> Begins {
        let mut inner = self.inner.borrow_mut();
        if inner.cut.is_some() || inner.hang.iter().any(|h| what.contains(h)) {
            return Begins::Never;
        }
        inner.count += 1;
        let cut = inner.cut_at.filter(|cut| cut.effect == inner.count);
        let fails = inner.fail.iter().any(|f| what.contains(f));
        let percent = inner.fail_percent;
        drop(inner);
        match cut {
            Some(CutAt { after: false, what, .. }) => Begins::Cut(what),
            _ if fails || (percent > 0 && self.random(100) < percent) => Begins::Fails,
            other => Begins::Goes(other.map(|cut| cut.what)),
        }
    }
}

enum Begins {
    Never,
    Cut(Cut),
    Fails,
    Goes(Option<Cut>),
}

/// An effect: some time passes, `apply` takes place, some time passes, and its result is known.
pub fn act<T: 'static>(
    effects: &Rc<Effects>,
    what: String,
    apply: impl FnOnce() -> Result<T, String> + 'static,
) -> Local<Result<T, String>> {
    let effects = effects.clone();
    Box::pin(async move {
        sleep(effects.moment()).await;
        let result = match effects.begins(&what) {
            Begins::Never => pending().await,
            Begins::Cut(cut) => {
                effects.cut(cut);
                pending().await
            }
            Begins::Fails => Err(format!("{what}: failed as a test wants")),
            Begins::Goes(cut) => {
                let result = apply();
                effects.inner.borrow_mut().done.push(what);
                if let Some(cut) = cut {
                    effects.cut(cut);
                    return pending().await;
                }
                result
            }
        };
        sleep(effects.moment()).await;
        result
    })
}
