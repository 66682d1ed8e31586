use super::*;
use crate::testing::Bench;
use crate::world::Local;
use holdfast_model::desired::Desired;
use holdfast_supervise::{Stream, UnitName};
use std::cell::RefCell;

/// PID 1's log as a list of answers; each question is noted.
#[derive(Default)]
struct Answers {
    left: RefCell<Vec<Logs>>,
    asked: RefCell<Vec<u64>>,
}

struct Log(Rc<Answers>);

impl Init for Log {
    fn logs(&self, after: u64) -> Local<Result<Logs, String>> {
        self.0.asked.borrow_mut().push(after);
        let answer = match self.0.left.borrow_mut().pop() {
            Some(answer) => answer,
            None => Logs { lines: vec![], next: after, more: false },
        };
        Box::pin(async move { Ok(answer) })
    }
    fn heartbeat(&self) -> Local<Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
    fn reboot(&self, _: String) -> Local<Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

fn line(unit: &str, text: &str) -> LogLine {
    LogLine {
        cursor: 1,
        unit: UnitName::new(unit).unwrap(),
        number: 1,
        stream: Stream::Out,
        at_ms: 5,
        text: text.into(),
    }
}

#[tokio::test(start_paused = true)]
async fn each_answer_is_a_pass_of_its_own_and_a_restart_goes_on_behind_the_last() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("log-cursor");
    let answers = Rc::new(Answers::default());
    *answers.left.borrow_mut() = vec![
        Logs { lines: vec![line("netsvc-a", "second")], next: 20, more: false },
        Logs { lines: vec![line("netsvc-a", "first"), line("node", "said already")], next: 10, more: true },
    ];
    let queue = Shared::default();
    let mut part = LogsPart::over(Rc::new(Log(answers.clone())), queue.clone(), mark.clone());
    let mut bench = Bench::default();
    bench.config(&mut part, Desired::default());
    for _ in 0..6 {
        tokio::time::advance(PACE).await;
        bench.settle(&mut part);
    }
    let texts: Vec<String> = queue.lock().unwrap().device.iter().map(|l| l.text.clone()).collect();
    assert_eq!(texts, ["first", "second"]);
    assert_eq!(*answers.asked.borrow(), [0, 10, 20]);
    assert_eq!(LogsPart::over(Rc::new(Log(answers)), queue, mark).cursor, 20);
}
