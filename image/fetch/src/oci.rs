//! The job that turns a container image into one erofs image.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufWriter, Seek as _, Write as _};

use holdfast_format::erofs::{Options, WriteError, write};

use crate::digest::{self, Digest};
use crate::failure::Failure;
use crate::http::Client;
use crate::layer::Flattener;
use crate::manifest::{Config, Document, Manifest};
use crate::registry::Repository;
use crate::report::Reporter;
use holdfast_model::contract::fetch::{Outcome, Phase};

/// Most bytes of layers, and of contents, where the job names no limit.
pub const BYTES_MAX: u64 = 64 << 30;

/// What to pull, and where to.
pub struct Pull<'a> {
    /// Repository.
    pub repository: &'a str,
    /// Tag or digest.
    pub reference: &'a str,
    /// Digest in hexadecimal that the document behind `reference` must have; empty = none.
    pub sha256: &'a str,
    /// Limit; 0 = none but the built-in one.
    pub max_bytes: u64,
    /// Where the image goes.
    pub output: File,
    /// One compressed layer at a time.
    pub layer_spool: File,
    /// Contents of all files.
    pub contents_spool: File,
}

/// Pulls, unpacks and writes.
///
/// # Errors
/// [`Failure`]; the output is then empty.
pub async fn pull(client: &Client, job: Pull<'_>, report: &mut Reporter) -> Result<Outcome, Failure> {
    let output = job.output.try_clone().map_err(Failure::file("output"))?;
    let result = pull_into(client, job, report).await;
    if result.is_err() {
        output.set_len(0).map_err(Failure::file("output"))?;
    }
    result
}

async fn pull_into(client: &Client, job: Pull<'_>, report: &mut Reporter) -> Result<Outcome, Failure> {
    if !client.is_https() {
        return Err(Failure::local(format!("registry {}: expected an https URL", client.url(""))));
    }
    report.progress(Phase::Resolving, 0, 0)?;
    let repository = Repository::new(client, job.repository)?;
    let max = if job.max_bytes == 0 { BYTES_MAX } else { job.max_bytes.min(BYTES_MAX) };
    let (manifest, manifest_digest) = resolve(&repository, &job).await?;
    let named = |d: &Digest| format!("{}@{d}", job.repository);
    let total: u64 = manifest.layers.iter().fold(0, |sum, l| sum.saturating_add(l.size));
    if total > max {
        return Err(Failure::content(format!(
            "{}: expected layers of at most {max} bytes, found {total}",
            named(&manifest_digest)
        )));
    }
    let config = repository.small_blob(&manifest.config).await?;
    let config = Config::parse(&config, &named(&manifest.config.digest), manifest.layers.len())?;

    let mut flat = Flattener::new(job.contents_spool, max);
    let mut layer_file = job.layer_spool;
    let mut fetched = 0;
    for (layer, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
        repository
            .blob(layer, &mut layer_file, |bytes| {
                fetched += bytes;
                report.progress(Phase::Downloading, fetched, total)
            })
            .await?;
        flat.apply(&mut layer_file, &named(&layer.digest), *diff_id, |_| {
            report.progress(Phase::Verifying, fetched, total)
        })?;
    }
    layer_file.set_len(0).map_err(Failure::file("spool file"))?;

    let (tree, contents) = flat.finish();
    let mut output = job.output;
    output.set_len(0).and_then(|()| output.rewind()).map_err(Failure::file("output"))?;
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&manifest_digest.0[..16]);
    let mut out = BufWriter::with_capacity(256 << 10, &output);
    let size_bytes =
        write(&mut out, &tree, &contents, Options { uuid, ..Options::default() }).map_err(|e| match e {
            WriteError::Output(e) => Failure::file("output")(e),
            WriteError::Spool { .. } => Failure::local(e.to_string()),
            WriteError::Xattr { .. } | WriteError::TooLarge(_) => {
                Failure::content(format!("{}: {e}", named(&manifest_digest)))
            }
        })?;
    out.flush().map_err(Failure::file("output"))?;
    drop(out);
    output.sync_all().map_err(Failure::file("output"))?;
    report.progress(Phase::Verifying, total, total)?;
    Ok(Outcome::Oci { manifest_sha256: hex::encode(manifest_digest.0), size_bytes, config: config.run })
}

/// From tag or digest to the manifest of our platform, each document checked against the digest that names it.
async fn resolve(repository: &Repository<'_>, job: &Pull<'_>) -> Result<(Manifest, Digest), Failure> {
    let what = format!("{}:{}", job.repository, job.reference);
    let (body, found) = repository.manifest(job.reference).await?;
    if !job.sha256.is_empty() {
        let expected = Digest::from_hex(job.sha256).ok_or_else(|| {
            Failure::local(format!("{what}: expected a SHA-256 in hexadecimal, found {:?}", job.sha256))
        })?;
        digest::expect(&what, expected, found)?;
    }
    match Document::parse(&body, &what)? {
        Document::Manifest(manifest) => Ok((manifest, found)),
        Document::Index(descriptor) => {
            let what = format!("{}@{}", job.repository, descriptor.digest);
            let (body, found) = repository.manifest(&descriptor.digest.to_string()).await?;
            match Document::parse(&body, &what)? {
                Document::Manifest(manifest) => Ok((manifest, found)),
                Document::Index(_) => {
                    Err(Failure::content(format!("{what}: expected a manifest, found another index")))
                }
            }
        }
    }
}
