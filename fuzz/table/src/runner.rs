//! One target under mutation: so many inputs, the same on every machine.

use crate::mutate::{Random, mutate};
use crate::targets::Target;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// When a machine is so slow that a target's inputs take this long, the rest is left out, and the test says so.
const TIME: Duration = Duration::from_secs(30);
/// An input that takes longer is a finding: work must be bounded by the input's size. Generous, as machines of tests are busy.
const SLOW: Duration = Duration::from_secs(5);
/// Samples kept to mutate further.
const CORPUS: usize = 64;

/// What a search found.
#[derive(Debug)]
pub struct Finding {
    /// The input.
    pub input: Vec<u8>,
    /// What happened.
    pub text: String,
}

/// Tries seeds and their mutations; gives back how many inputs were tried.
///
/// # Errors
/// The first input that made the target panic or took too long.
pub fn search(target: &Target, time: Duration, inputs: u64) -> Result<u64, Finding> {
    let end = Instant::now() + time;
    let mut corpus = (target.seeds)();
    corpus.extend([Vec::new(), vec![0; 64], vec![0xff; 64]]);
    for seed in &corpus {
        attempt(target, seed)?;
    }
    let fixed = corpus.len();
    let mut tried = fixed as u64;
    // Every target has a sequence of its own.
    let mut random = Random::new(target.name.bytes().fold(0, |n: u64, b| n.wrapping_mul(31).wrapping_add(b.into())));
    while tried < inputs && Instant::now() < end {
        let mut data = corpus[random.below(corpus.len())].clone();
        let other = corpus[random.below(corpus.len())].clone();
        mutate(&mut random, &mut data, &other, target.max_bytes);
        attempt(target, &data)?;
        tried += 1;
        // Some mutants live on, so that changes add up; the seeds stay.
        if random.below(8) == 0 {
            if corpus.len() < fixed + CORPUS {
                corpus.push(data);
            } else {
                let at = fixed + random.below(CORPUS);
                corpus[at] = data;
            }
        }
    }
    Ok(tried)
}

fn attempt(target: &Target, input: &[u8]) -> Result<(), Finding> {
    let start = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let took = start.elapsed();
    let text = match outcome {
        Err(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned()))
            .unwrap_or_else(|| "panic".to_owned()),
        Ok(()) if took > SLOW => format!("took {took:?} for {} bytes, expected less than {SLOW:?}", input.len()),
        Ok(()) => return Ok(()),
    };
    Err(Finding { input: input.to_vec(), text })
}

/// The search as a test.
///
/// # Panics
/// With the finding; its input is kept in a file that the message names.
pub fn check(target: &Target) {
    let asked = std::env::var("HOLDFAST_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).map(Duration::from_secs);
    // Whoever names a time wants all that fits into it.
    let (time, inputs) = asked.map_or((TIME, target.inputs), |time| (time, u64::MAX));
    match search(target, time, inputs) {
        Ok(tried) if asked.is_none() && tried < inputs => {
            println!("{}: only {tried} of {inputs} inputs in {} s", target.name, time.as_secs());
        }
        Ok(tried) => println!("{}: {tried} inputs", target.name),
        Err(finding) => {
            let path: PathBuf = std::env::temp_dir().join(format!("holdfast-fuzz-{}", target.name));
            let kept = std::fs::write(&path, &finding.input);
            panic!(
                "{}: {}; input kept {kept:?}: cargo run -p holdfast-fuzz --bin fuzz-one -- {} < {}",
                target.name,
                finding.text,
                target.name,
                path.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parser_that_trusts_a_length_is_found_out() {
        fn trusting(data: &[u8]) {
            if let [b'L', length, rest @ ..] = data {
                let _ = &rest[..usize::from(*length)];
            }
        }
        let seeds = || vec![b"L\x03abc".to_vec()];
        let target = Target { name: "trusting", run: trusting, seeds, max_bytes: 64, inputs: 20_000 };
        let finding = search(&target, Duration::from_secs(20), target.inputs).unwrap_err();
        assert_eq!(finding.input[0], b'L');
        assert!(finding.text.contains("range"), "{}", finding.text);
    }

    #[test]
    fn two_searches_try_the_same_inputs_in_the_same_order() {
        static SEEN: std::sync::Mutex<Vec<Vec<u8>>> = std::sync::Mutex::new(Vec::new());
        let target = Target {
            name: "seen",
            run: |data| SEEN.lock().unwrap().push(data.to_vec()),
            seeds: || vec![b"seed".to_vec()],
            max_bytes: 64,
            inputs: 1000,
        };
        let run = || {
            search(&target, Duration::from_secs(20), target.inputs).unwrap();
            std::mem::take(&mut *SEEN.lock().unwrap())
        };
        let first = run();
        assert_eq!(first.len(), 1000);
        assert!(first == run(), "the second run differs");
    }

    #[test]
    fn a_search_ends_in_its_time() {
        let target = Target { name: "idle", run: |_| {}, seeds: Vec::new, max_bytes: 64, inputs: 500 };
        assert_eq!(search(&target, Duration::from_secs(20), target.inputs).unwrap(), 500);
        let start = Instant::now();
        search(&target, Duration::from_millis(50), u64::MAX).unwrap();
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
