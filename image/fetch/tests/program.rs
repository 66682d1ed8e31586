//! The program itself, in its sandbox: the descriptors that PID 1 gives it, and nothing else.

mod common;

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use common::{WebServer, noise, sha256, tar};
use holdfast_model::contract::Version;
use holdfast_model::contract::end::{End, ExitClass};
use holdfast_model::contract::fetch::{Job, Outcome, Report, Task};

/// Runs the program with `files` at descriptors 5, 6, ...; returns its last words and its reports.
async fn run(web: &WebServer, task: Task, files: Vec<File>) -> (End, Vec<Report>) {
    let job = Job { version: Version, report_fd: 4, server: web.server(), task };
    let mut document = tempfile::tempfile().unwrap();
    document.write_all(&serde_json::to_vec(&job).unwrap()).unwrap();
    document.rewind().unwrap();
    let mut reports = tempfile::tempfile().unwrap();
    let mut given = vec![document, reports.try_clone().unwrap()];
    given.extend(files);
    let mut words = tempfile::tempfile().unwrap();
    given.push(words.try_clone().unwrap());
    let numbers: Vec<RawFd> = given.iter().map(|f| f.as_raw_fd()).collect();
    let status = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fetch"));
        command.args(["--config-fd", "3"]).env_clear();
        command.env("HOLDFAST_LAST_WORDS", (3 + numbers.len() - 1).to_string());
        // SAFETY: between fork and exec only dup2 and fcntl run, on descriptors that `given` keeps open. They are first
        // copied out of the way of the targets.
        unsafe {
            command.pre_exec(move || {
                for (i, from) in numbers.iter().enumerate() {
                    if libc::fcntl(*from, libc::F_DUPFD, 100) != 100 + i32::try_from(i).unwrap_or(0) {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                for i in 0..i32::try_from(numbers.len()).unwrap_or(0) {
                    if libc::dup2(100 + i, 3 + i) < 0 || libc::close(100 + i) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let out = command.output().unwrap();
        drop(given);
        eprint!("{}", String::from_utf8_lossy(&out.stderr));
        out.status.code()
    })
    .await
    .unwrap();
    let mut said = Vec::new();
    words.rewind().unwrap();
    words.read_to_end(&mut said).unwrap();
    let end = holdfast_unit::last_words::parse(&said).unwrap();
    assert_eq!(status, Some(i32::from(end.class.code())));
    let mut text = String::new();
    reports.rewind().unwrap();
    reports.read_to_string(&mut text).unwrap();
    (end, text.lines().map(|l| serde_json::from_str(l).unwrap()).collect())
}

#[tokio::test]
async fn a_pull_works_in_the_sandbox_with_spool_files_that_have_no_name() {
    let web = WebServer::start().await;
    let digest = web.image("a/b", "latest", &[tar(&[("bin/app", &noise(400_000))])], true);
    let dir = tempfile::tempdir().unwrap();
    let output = tempfile::tempfile().unwrap();
    let task = Task::Oci {
        repository: "a/b".into(),
        reference: "latest".into(),
        sha256: digest.trim_start_matches("sha256:").into(),
        max_bytes: 0,
        output_fd: 5,
        spool_fd: 6,
    };
    let files = vec![output.try_clone().unwrap(), File::open(dir.path()).unwrap()];
    let (end, reports) = run(&web, task, files).await;
    assert_eq!(end.class, ExitClass::Done, "{reports:?}");
    let Some(Report::Done(Outcome::Oci { size_bytes, .. })) = reports.last() else { panic!("{reports:?}") };
    assert_eq!(output.metadata().unwrap().len(), *size_bytes);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something was left in the spool directory");
}

#[tokio::test]
async fn failures_are_reported_and_end_with_an_exit_code() {
    let web = WebServer::start().await;
    let output = tempfile::tempfile().unwrap();
    let task = Task::Blob { path: "/missing".into(), sha256: sha256(b""), max_bytes: 0, output_fd: 5 };
    let (end, reports) = run(&web, task.clone(), vec![output]).await;
    let Some(Report::Failed { text, .. }) = reports.last() else { panic!("{reports:?}") };
    assert_eq!(end, End::new(ExitClass::Failed, text.clone()), "the same sentence");
    assert!(text.contains("/missing: expected status 200, found 404"), "{text}");

    // A descriptor that is not there, or that is named twice.
    let (end, reports) = run(&web, task, vec![]).await;
    let Some(Report::Failed { text, .. }) = reports.last() else { panic!("{reports:?}") };
    assert!(text.contains("output: inherited fd 5"), "{text}");
    assert_eq!(end, End::new(ExitClass::Resource, text.clone()));
}
