//! Power cuts while the machine provisions itself: partition table, slot record, keys in the TPM, encrypted data partition.
//!
//! The wrong way to see it would be one cut at a chosen moment, or a fresh machine after each: a half-made thing that only the boot after next
//! trips over would not show. So one machine is cut again and again at random moments of its first provisioning, each boot finds what the cut
//! one left, and the last boot must complete and reach the controller. `$HOLDFAST_CUTS` sets how many cuts, `$HOLDFAST_SEED` repeats a run.

use anyhow::Result;
use holdfast_scenarios::world::boot_limit;
use holdfast_scenarios::{World, scenario, secs};
use std::time::{Duration, Instant};

/// Where a cut may come, as a line of the console, and how long after it at most, in milliseconds. The last one, the making of keys and data
/// partition, takes longest and is cut most.
const MOMENTS: [(&str, u64); 8] = [
    ("pid1: mounted", 1500),
    ("pid1: disk", 3000),
    ("pid1: state", 1000),
    ("pid1: verified", 500),
    ("unit node: started", 1500),
    ("in slot A, boot", 1500),
    ("in slot A, boot", 3000),
    ("in slot A, boot", 5000),
];

#[test]
fn power_cut_during_first_provisioning_completes_next_boot() {
    let cuts = setting("HOLDFAST_CUTS").unwrap_or(10);
    let seed = setting("HOLDFAST_SEED").unwrap_or_else(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |t| t.as_secs().max(1))
    });
    eprintln!("{cuts} cuts, HOLDFAST_SEED={seed}");
    scenario(World::builder("power-cuts"), |world| {
        let mut random = Random(seed);
        let virgin = world.device.snapshot()?;
        for cut in 1..=cuts {
            let (line, at_most) = MOMENTS[random.below(MOMENTS.len() as u64) as usize];
            let after = Duration::from_millis(random.below(at_most));
            world.power_on()?;
            world.wait_console(line, boot_limit())?;
            wait(after);
            world.device.power_cut()?;
            let last = world.console().last().map(|l| format!("{}: {}", l.who, l.text)).unwrap_or_default();
            eprintln!("cut {cut}: {after:?} after {line:?}; last said: {last}");
            if world.console().iter().any(|l| l.text.starts_with("vault open")) {
                // Provisioned: this was a cut of another kind. The next one begins with a machine that never booted, and with a
                // controller that has not met it: for a TPM made anew a serial number that is taken is refused.
                world.device.restore(&virgin)?;
                for met in world.controller().devices() {
                    world.controller().remove_device(met)?;
                }
            }
        }
        world.power_on()?;
        world.wait_online(secs(400))?;
        world.deploy_webapp(boot_limit())
    });
}

/// The moment is the point here: nothing could be waited for.
fn wait(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// xorshift64: enough for moments.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

#[test]
fn moments_of_a_seed_are_the_same_each_time() -> Result<()> {
    let draw = |seed| (0..5).scan(Random(seed), |r, _| Some(r.below(1000))).collect::<Vec<_>>();
    assert_eq!(draw(7), draw(7));
    assert_ne!(draw(7), draw(8));
    Ok(())
}
