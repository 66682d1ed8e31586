//! Jobs as units of PID 1.

use super::jobs::{FETCH_UID, memfd, task_fd};
use super::reports::{self, ReportFile};
use super::{Fetching, Get, Order, Reports};
use crate::world::Local;
use anyhow::{Context, Result};
use holdfast_format::release::PRODUCT;
use holdfast_model::contract::fetch::{Job, Task};
use holdfast_model::contract::{self, Version};
use holdfast_supervise::{AsyncClient, CallError, Limits, UnitName, UnitSpec};
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// Descriptor of the job document; the reports and the job's files follow.
const DOCUMENT_FD: i32 = 3;

/// Runs jobs.
pub struct Units {
    /// PID 1.
    pub supervisor: Rc<AsyncClient>,
    /// Folder of reports, in memory: what is in it is of this boot.
    pub reports: PathBuf,
}

impl Units {
    fn report_file(&self, unit: &UnitName) -> PathBuf {
        self.reports.join(unit.as_str())
    }
}

impl Fetching for Units {
    fn start(&self, order: Order) -> Local<Result<Rc<dyn Reports>, String>> {
        let (supervisor, reports, unit) = (self.supervisor.clone(), self.report_file(&order.unit), order.unit.clone());
        Box::pin(async move {
            let path = reports.clone();
            let prepared = tokio::task::spawn_blocking(move || prepare(&order, &path)).await;
            let (spec, fds) = prepared.map_err(|e| e.to_string())?.map_err(|e| format!("{e:#}"))?;
            dropped(supervisor.remove(&unit).await).map_err(|e| format!("unit {unit}: {e}"))?;
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            supervisor.start(&spec, &borrowed).await.map_err(|e| format!("unit {unit}: {e}"))?;
            open(&reports)
        })
    }

    fn adopt(&self, unit: UnitName) -> Local<Result<Rc<dyn Reports>, String>> {
        Box::pin(std::future::ready(open(&self.report_file(&unit))))
    }

    fn stop(&self, unit: UnitName) -> Local<Result<(), String>> {
        let (supervisor, reports) = (self.supervisor.clone(), self.report_file(&unit));
        Box::pin(async move {
            dropped(supervisor.stop(&unit, Some(Duration::ZERO)).await).map_err(|e| format!("unit {unit}: {e}"))?;
            drop_job(&supervisor, &unit, &reports).await
        })
    }

    fn remove(&self, unit: UnitName) -> Local<Result<(), String>> {
        let (supervisor, reports) = (self.supervisor.clone(), self.report_file(&unit));
        Box::pin(async move { drop_job(&supervisor, &unit, &reports).await })
    }
}

fn open(reports: &Path) -> Result<Rc<dyn Reports>, String> {
    let file = ReportFile::open(reports).map_err(|e| format!("reports {}: {e}", reports.display()))?;
    Ok(Rc::new(file))
}

async fn drop_job(supervisor: &AsyncClient, unit: &UnitName, reports: &Path) -> Result<(), String> {
    dropped(supervisor.remove(unit).await).map_err(|e| format!("unit {unit}: {e}"))?;
    let _ = fs::remove_file(reports);
    Ok(())
}

/// PID 1's no is that the unit does not exist, or lives: for who wants it away, that is well.
fn dropped(answer: Result<(), CallError>) -> Result<(), CallError> {
    match answer {
        Err(CallError::Refused(_)) => Ok(()),
        other => other,
    }
}

/// The unit of a job and what it gets. Blocks for as long as files take to open.
fn prepare(order: &Order, reports: &Path) -> Result<(UnitSpec, Vec<OwnedFd>)> {
    let write = |path: &Path| {
        OpenOptions::new().read(true).write(true).open(path).with_context(|| format!("cannot open {}", path.display()))
    };
    let (task, files): (Task, [OwnedFd; 2]) = match &order.get {
        Get::Image { repository, reference, sha256, max_bytes, output, spool } => {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(output);
            let file = file.with_context(|| format!("cannot make {}", output.display()))?;
            fs::create_dir_all(spool).with_context(|| format!("cannot make {}", spool.display()))?;
            chown(spool, Some(FETCH_UID), Some(FETCH_UID))?;
            let task = Task::Oci {
                repository: repository.clone(),
                reference: reference.clone(),
                sha256: sha256.clone(),
                max_bytes: *max_bytes,
                output_fd: task_fd(0),
                spool_fd: task_fd(1),
            };
            (task, [file.into(), File::open(spool)?.into()])
        }
        Get::Slot { path, sha256, max_bytes, release_key_pem, min_epoch, version, esp, os } => {
            let task = Task::Update {
                path: path.clone(),
                sha256: sha256.clone(),
                max_bytes: *max_bytes,
                release_key_pem: release_key_pem.clone(),
                product: PRODUCT.into(),
                min_epoch: *min_epoch,
                version: version.clone(),
                esp_fd: task_fd(0),
                os_fd: task_fd(1),
            };
            (task, [write(esp)?.into(), write(os)?.into()])
        }
    };
    let job = Job { version: Version, report_fd: DOCUMENT_FD + 1, server: order.server.clone(), task };
    let document = memfd("job", &contract::write(&job)?)?;
    let writer = reports::create(reports).with_context(|| format!("reports {}", reports.display()))?;

    let mut spec = UnitSpec::new(order.unit.clone(), "/bin/fetch", FETCH_UID);
    spec.args = vec!["--config-fd".into(), DOCUMENT_FD.to_string()];
    spec.tag.clone_from(&order.tag);
    // The spool is page cache that belongs to this cgroup and can be written back; this bounds the process itself.
    spec.limits = Limits { memory_max_bytes: Some(192 << 20), cpu_weight: Some(50), pids_max: Some(16) };
    let fds = [document, writer.into()].into_iter().chain(files).collect();
    Ok((spec, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_model::contract::fetch::Server;
    use std::os::fd::AsRawFd;

    #[test]
    fn descriptors_are_where_the_job_document_says() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["esp", "os"] {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        let order = Order {
            unit: UnitName::new("fetch-base-os").unwrap(),
            tag: "2".into(),
            server: Server {
                base_url: "https://x".into(),
                user: String::new(),
                password: String::new(),
                ca_pem: vec![],
            },
            get: Get::Slot {
                path: "/2.update".into(),
                sha256: String::new(),
                max_bytes: 0,
                release_key_pem: String::new(),
                min_epoch: 0,
                version: "2".into(),
                esp: dir.path().join("esp"),
                os: dir.path().join("os"),
            },
        };
        let (spec, fds) = prepare(&order, &dir.path().join("jobs/fetch-base-os")).unwrap();
        assert_eq!((spec.tag.as_str(), fds.len()), ("2", 4));
        let target = |fd: &OwnedFd| fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
        assert!(target(&fds[1]).ends_with("jobs/fetch-base-os") && target(&fds[2]).ends_with("esp"));
        let job: Job = contract::read(&fs::read(format!("/proc/self/fd/{}", fds[0].as_raw_fd())).unwrap()).unwrap();
        assert_eq!(job.report_fd, 4);
        assert!(matches!(job.task, Task::Update { esp_fd: 5, os_fd: 6, .. }), "{:?}", job.task);
    }
}
