//! What one changed access rule costs as apps and rules grow: planning, deciding, actions, messages to nftables and their bytes.
//! `cargo xtask bench network` prints it. The kernel is not asked; the counts are those of `tests/firewall.rs`.

#[path = "../tests/scale/mod.rs"]
mod scale;

use std::time::{Duration, Instant};

/// The shortest of five runs, each with its result.
fn best<T>(mut work: impl FnMut() -> (Duration, T)) -> (Duration, T) {
    (0..5).map(|_| work()).min_by_key(|(time, _)| *time).expect("five runs")
}

fn main() {
    println!(
        "| apps x rules | plan | compare and decide | actions | messages | bytes | all messages at boot | bytes |"
    );
    println!("|--|--|--|--|--|--|--|--|");
    for (apps, rules) in [(10, 10), (50, 10), (200, 10), (200, 50), (10, 512), (50, 512), (200, 100), (200, 512)] {
        let (before, after) = (scale::desired(apps, rules), scale::changed(scale::desired(apps, rules)));
        let (plan, _) = best(|| {
            let begin = Instant::now();
            let plan = scale::planned(&after);
            (begin.elapsed(), plan)
        });
        let (decide, (boot, change)) = best(|| {
            let mut engine = scale::engine();
            engine.set_intended(scale::planned(&before).graph);
            let boot = scale::pretend(&mut engine);
            let graph = scale::planned(&after).graph;
            let begin = Instant::now();
            engine.set_intended(graph);
            let ops = engine.next(begin);
            let time = begin.elapsed();
            ops.iter().for_each(|op| scale::succeed(&mut engine, op));
            let mut change: Vec<_> = ops.into_iter().flat_map(|op| op.actions).collect();
            change.extend(scale::pretend(&mut engine));
            (time, (boot, change))
        });
        let (messages, bytes) = scale::sent(&change);
        let (all, all_bytes) = scale::sent(&boot);
        println!(
            "| {apps} x {rules} | {:.1} ms | {:.2} ms | {} | {messages} | {bytes} | {all} | {all_bytes} |",
            plan.as_secs_f64() * 1e3,
            decide.as_secs_f64() * 1e3,
            change.len(),
        );
    }
}
