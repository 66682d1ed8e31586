use super::*;
use crate::world::Local;
use std::cell::RefCell;
use std::future::pending;
use std::io;
use std::time::SystemTime;
use tokio::task::LocalSet;
use tokio::time::{Instant, advance, sleep};

/// Virtual time.
struct Virtual(Instant);

impl Clock for Virtual {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.0.elapsed()
    }
}

/// Files in memory; each write takes a second, and fails while `full`.
#[derive(Default)]
struct Memory {
    written: RefCell<Vec<(PathBuf, Vec<u8>)>>,
    full: Cell<bool>,
}

/// A handle on [`Memory`] that outlives the kernel's.
struct Shared(Rc<Memory>);

impl Files for Shared {
    fn replace(&self, path: PathBuf, content: Vec<u8>) -> Local<io::Result<()>> {
        let memory = self.0.clone();
        Box::pin(async move {
            sleep(Duration::from_secs(1)).await;
            if memory.full.get() {
                return Err(io::Error::other("no space"));
            }
            memory.written.borrow_mut().push((path, content));
            Ok(())
        })
    }
}

/// A part made of one closure for its turns; what happened to it is noted.
struct Scripted<F> {
    name: &'static str,
    seen: Rc<RefCell<Vec<String>>>,
    turn: F,
}

impl<F: FnMut(&mut Turn<'_>)> Part for Scripted<F> {
    fn name(&self) -> &'static str {
        self.name
    }
    fn event(&mut self, event: &Event, _: &mut Turn<'_>) {
        let text = if let Some(saved) = event.news::<Saved>() {
            format!("saved {}", saved.path.display())
        } else if let Some(failed) = event.news::<SaveFailed>() {
            format!("failed {}", failed.path.display())
        } else if let Some(text) = event.news::<&str>() {
            format!("news {text}")
        } else {
            return;
        };
        self.seen.borrow_mut().push(text);
    }
    fn turn(&mut self, turn: &mut Turn<'_>) {
        (self.turn)(turn);
    }
    fn observe(&self, observed: &mut Observed) {
        observed.device.host_name.push_str(self.name);
    }
}

type Seen = Rc<RefCell<Vec<String>>>;

fn kernel(parts: Vec<Box<dyn Part>>) -> (Kernel, watch::Receiver<Observed>, Rc<Memory>) {
    let memory = Rc::new(Memory::default());
    let means = Means {
        clock: Rc::new(Virtual(Instant::now())),
        files: Rc::new(Shared(memory.clone())),
        say: Box::new(|_| {}),
    };
    let (kernel, report) = Kernel::new(parts, means);
    (kernel, report, memory)
}

fn part(name: &'static str, turn: impl FnMut(&mut Turn<'_>) + 'static) -> (Box<dyn Part>, Seen) {
    let seen = Seen::default();
    (Box::new(Scripted { name, seen: seen.clone(), turn }), seen)
}

/// Runs the kernel for some virtual seconds.
async fn run_for(kernel: &mut Kernel, seconds: u64) {
    let end = kernel.means.clock.now() + Duration::from_secs(seconds);
    let clock = kernel.means.clock.clone();
    tokio::select! {
        () = kernel.run(|_| false) => {}
        () = async { while clock.now() < end { sleep(Duration::from_millis(100)).await; } } => {}
    }
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_never_ends_holds_up_nobody() {
    LocalSet::new()
        .run_until(async {
            let (mut hung, mut went) = (false, false);
            let (stuck, _) = part("stuck", move |turn| {
                if !std::mem::replace(&mut hung, true) {
                    turn.start("hang", pending::<&str>());
                }
            });
            let (other, seen) = part("other", move |turn| {
                if turn.now >= Duration::from_secs(5) && !std::mem::replace(&mut went, true) {
                    turn.start("go", async { "went" });
                }
            });
            let (mut kernel, report, _) = kernel(vec![stuck, other]);
            let progress = kernel.progress();
            run_for(&mut kernel, 10).await;
            assert_eq!(*seen.borrow(), ["news went"]);
            assert!(progress.turns() >= 10, "{}", progress.turns());
            assert_eq!(report.borrow().device.host_name, "stuckother", "each part has its share of the report");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn saves_of_a_part_keep_their_order_and_what_waits_for_them_stays_behind() {
    LocalSet::new()
        .run_until(async {
            let mut step = 0;
            let (saver, seen) = part("saver", move |turn| {
                step += 1;
                match step {
                    1 => turn.save("status/saver.json", vec![1]),
                    2 => {
                        turn.save("status/saver.json", vec![2]);
                        turn.start_saved("act", async { "acted" });
                    }
                    _ => {}
                }
            });
            let (mut kernel, _, memory) = kernel(vec![saver]);
            kernel.turn(None);
            kernel.turn(None);
            run_for(&mut kernel, 5).await;
            let contents: Vec<Vec<u8>> = memory.written.borrow().iter().map(|(_, c)| c.clone()).collect();
            assert_eq!(contents, [vec![1], vec![2]]);
            assert_eq!(*seen.borrow(), ["saved status/saver.json", "saved status/saver.json", "news acted"]);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_save_that_fails_is_dropped_and_said() {
    LocalSet::new()
        .run_until(async {
            let mut step = 0;
            let (saver, seen) = part("saver", move |turn| {
                step += 1;
                match step {
                    1 => {
                        turn.save("a", vec![1]);
                        turn.start_saved("act", async { "acted" });
                    }
                    // Nothing to save, but what it relies on is still not on disk.
                    2 => turn.start_saved("act", async { "acted" }),
                    _ => {}
                }
            });
            let (mut kernel, _, memory) = kernel(vec![saver]);
            memory.full.set(true);
            kernel.turn(None);
            kernel.turn(None);
            run_for(&mut kernel, 5).await;
            assert_eq!(*seen.borrow(), ["failed a", "failed a"]);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn facts_reach_parts_that_ran_before_their_publisher_in_the_same_turn() {
    #[derive(PartialEq)]
    struct Uplink(&'static str);
    LocalSet::new()
        .run_until(async {
            let known = Seen::default();
            let noted = known.clone();
            let (reader, _) = part("reader", move |turn| {
                noted.borrow_mut().push(turn.facts.get::<Uplink>().map_or("none", |u| u.0).to_owned());
            });
            let (publisher, _) = part("publisher", |turn| turn.facts.publish(Uplink("eth0")));
            let (mut kernel, ..) = kernel(vec![reader, publisher]);
            kernel.turn(None);
            assert_eq!(*known.borrow(), ["none", "eth0"]);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_part_is_woken_when_it_asked_to_be() {
    LocalSet::new()
        .run_until(async {
            let at = Rc::new(RefCell::new(Vec::new()));
            let noted = at.clone();
            let (sleeper, _) = part("sleeper", move |turn| {
                noted.borrow_mut().push(turn.now.as_millis());
                turn.wake(Duration::from_millis(300));
            });
            let (mut kernel, ..) = kernel(vec![sleeper]);
            let running = async {
                advance(Duration::from_millis(1)).await;
                sleep(Duration::from_millis(400)).await;
            };
            tokio::select! { () = kernel.run(|_| false) => {}, () = running => {} }
            assert!(at.borrow().iter().any(|ms| (300..310).contains(ms)), "{:?}", at.borrow());
        })
        .await;
}
