//! The job that fetches a plain file.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufWriter, Seek as _, Write as _};

use sha2::{Digest as _, Sha256};

use crate::digest::{self, Digest};
use crate::download::{Bounds, download};
use crate::failure::Failure;
use crate::http::Client;
use crate::oci::BYTES_MAX;
use crate::report::Reporter;
use holdfast_model::contract::fetch::{Outcome, Phase};

/// What to fetch, and where to.
pub struct Fetch<'a> {
    /// Path on the server.
    pub path: &'a str,
    /// SHA-256 in hexadecimal; empty = none.
    pub sha256: &'a str,
    /// Limit; 0 = none but the built-in one.
    pub max_bytes: u64,
    /// Where it goes.
    pub output: File,
}

/// Downloads and checks.
///
/// # Errors
/// [`Failure`]; the output is then empty.
pub async fn fetch(client: &Client, job: Fetch<'_>, report: &mut Reporter) -> Result<Outcome, Failure> {
    let output = job.output.try_clone().map_err(Failure::file("output"))?;
    let result = fetch_into(client, job, report).await;
    if result.is_err() {
        output.set_len(0).map_err(Failure::file("output"))?;
    }
    result
}

async fn fetch_into(client: &Client, job: Fetch<'_>, report: &mut Reporter) -> Result<Outcome, Failure> {
    let expected = (!job.sha256.is_empty())
        .then(|| {
            Digest::from_hex(job.sha256).ok_or_else(|| {
                Failure::local(format!("{}: expected a SHA-256 in hexadecimal, found {:?}", job.path, job.sha256))
            })
        })
        .transpose()?;
    let max = if job.max_bytes == 0 { BYTES_MAX } else { job.max_bytes.min(BYTES_MAX) };
    let mut output = job.output;
    output.set_len(0).and_then(|()| output.rewind()).map_err(Failure::file("output"))?;
    let mut hash = Sha256::new();
    let mut out = BufWriter::with_capacity(256 << 10, &output);
    let mut done = 0;
    report.progress(Phase::Resolving, 0, 0)?;
    let size_bytes = download(client, job.path, Bounds { exact: None, max }, |bytes, total| {
        hash.update(bytes);
        out.write_all(bytes).map_err(Failure::file("output"))?;
        done += bytes.len() as u64;
        report.progress(Phase::Downloading, done, total)
    })
    .await?;
    out.flush().map_err(Failure::file("output"))?;
    drop(out);
    let found = Digest(hash.finalize().into());
    if let Some(expected) = expected {
        digest::expect(&client.url(job.path), expected, found)?;
    }
    output.sync_all().map_err(Failure::file("output"))?;
    Ok(Outcome::Blob { sha256: hex::encode(found.0), size_bytes })
}
