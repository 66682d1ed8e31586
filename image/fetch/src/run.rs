//! A job from its descriptor to its last report.

use std::fs::File;
use std::time::Duration;

use crate::blob::{self, Fetch};
use crate::failure::Failure;
use crate::fds;
use crate::http::Client;
use crate::oci::{self, Pull};
use crate::report::Reporter;
use crate::sandbox;
use crate::update::{self, Install};
use holdfast_model::contract::fetch::{Job, Outcome, Task};

/// A job that takes longer is hopeless; the agent starts another.
const JOB_LIMIT: Duration = Duration::from_secs(12 * 3600);

/// The files of a task, taken into ownership.
pub enum Files {
    /// Of [`Task::Oci`].
    Oci {
        /// The image.
        output: File,
        /// One layer.
        layer_spool: File,
        /// Contents.
        contents_spool: File,
    },
    /// Of [`Task::Update`].
    Update {
        /// ESP.
        esp: File,
        /// OS.
        os: File,
    },
    /// Of [`Task::Blob`].
    Blob {
        /// The file.
        output: File,
    },
}

impl Files {
    /// Takes the descriptors that `task` names, and makes its spool files.
    ///
    /// # Errors
    /// A descriptor that is not there.
    pub fn take(task: &Task) -> Result<Self, Failure> {
        Ok(match task {
            Task::Oci { output_fd, spool_fd, .. } => {
                let output = fds::take(*output_fd, "output")?;
                let spool = fds::take(*spool_fd, "spool directory")?;
                Self::Oci { output, layer_spool: fds::spool(&spool)?, contents_spool: fds::spool(&spool)? }
            }
            Task::Update { esp_fd, os_fd, .. } => {
                Self::Update { esp: fds::take(*esp_fd, "ESP")?, os: fds::take(*os_fd, "OS partition")? }
            }
            Task::Blob { output_fd, .. } => Self::Blob { output: fds::take(*output_fd, "output")? },
        })
    }
}

/// Runs a job in the sandbox.
///
/// # Errors
/// The failure that was also reported, or that the report itself failed.
pub fn job(job: &Job) -> Result<(), Failure> {
    let mut report = Reporter::new(fds::take(job.report_fd, "report")?);
    let result = Files::take(&job.task).and_then(|files| {
        // Before the sandbox: what it opens for itself is then there. It has no threads yet.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(2)
            .build()
            .map_err(Failure::file("runtime"))?;
        sandbox::enter()?;
        runtime.block_on(execute(job, files, &mut report))
    });
    report.finish(&result)?;
    result.map(|_| ())
}

/// Runs a job with its files, without a sandbox.
///
/// # Errors
/// [`Failure`].
pub async fn execute(job: &Job, files: Files, report: &mut Reporter) -> Result<Outcome, Failure> {
    let client = Client::new(&job.server)?;
    let work = async {
        match (&job.task, files) {
            (
                Task::Oci { repository, reference, sha256, max_bytes, .. },
                Files::Oci { output, layer_spool, contents_spool },
            ) => {
                let max_bytes = *max_bytes;
                oci::pull(
                    &client,
                    Pull { repository, reference, sha256, max_bytes, output, layer_spool, contents_spool },
                    report,
                )
                .await
            }
            (
                Task::Update { path, sha256, max_bytes, release_key_pem, product, min_epoch, version, .. },
                Files::Update { esp, os },
            ) => {
                let (max_bytes, min_epoch) = (*max_bytes, *min_epoch);
                update::install(
                    &client,
                    Install { path, sha256, max_bytes, release_key_pem, product, min_epoch, version, esp, os },
                    report,
                )
                .await
            }
            (Task::Blob { path, sha256, max_bytes, .. }, Files::Blob { output }) => {
                blob::fetch(&client, Fetch { path, sha256, max_bytes: *max_bytes, output }, report).await
            }
            _ => Err(Failure::local("the files are not those of the task")),
        }
    };
    tokio::time::timeout(JOB_LIMIT, work)
        .await
        .unwrap_or_else(|_| Err(Failure::transport(format!("the job did not end within {JOB_LIMIT:?}"))))
}
