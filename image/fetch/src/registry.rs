//! A container registry: manifests and blobs (OCI distribution spec 1.1, "Pull").
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufWriter, Seek as _, Write as _};

use sha2::{Digest as _, Sha256};

use crate::digest::{self, Digest};
use crate::download::{Bounds, download, fetch_small};
use crate::failure::Failure;
use crate::http::{Client, Get};
use crate::manifest::{ACCEPT, DOCUMENT_MAX, Descriptor};

/// One repository of a registry.
pub struct Repository<'a> {
    client: &'a Client,
    name: &'a str,
}

impl<'a> Repository<'a> {
    /// A repository; its name becomes part of URLs, so it is checked.
    ///
    /// # Errors
    /// A name that is not one (distribution spec, "Pulling manifests").
    pub fn new(client: &'a Client, name: &'a str) -> Result<Self, Failure> {
        let component = |c: &str| {
            !c.is_empty()
                && c.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
                && c.starts_with(|b: char| b.is_ascii_alphanumeric())
                && c.ends_with(|b: char| b.is_ascii_alphanumeric())
        };
        if name.len() > 255 || !name.split('/').all(component) {
            return Err(Failure::local(format!(
                "repository {name:?}: expected lower-case names with . _ - between slashes, such as library/nginx"
            )));
        }
        Ok(Self { client, name })
    }

    /// An index or manifest by tag or digest, and its digest. What is asked for by digest is checked against it.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn manifest(&self, reference: &str) -> Result<(Vec<u8>, Digest), Failure> {
        let by_digest = match reference.contains(':') {
            true => Some(Digest::from_oci(reference, "image reference").map_err(|f| Failure::local(f.text))?),
            false if is_tag(reference) => None,
            false => {
                return Err(Failure::local(format!(
                    "image reference {reference:?}: expected a tag or sha256:<digest>"
                )));
            }
        };
        let target = format!("/v2/{}/manifests/{reference}", self.name);
        let body =
            fetch_small(self.client, &Get { target: target.clone(), accept: ACCEPT, ..Get::default() }, DOCUMENT_MAX)
                .await?;
        let found = Digest::of(&body);
        if let Some(expected) = by_digest {
            digest::expect(&self.client.url(&target), expected, found)?;
        }
        Ok((body, found))
    }

    /// A small blob in memory.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn small_blob(&self, blob: &Descriptor) -> Result<Vec<u8>, Failure> {
        let target = self.blob_path(blob);
        if blob.size > DOCUMENT_MAX as u64 {
            return Err(Failure::content(format!(
                "{}: expected at most {DOCUMENT_MAX} bytes, found {}",
                self.client.url(&target),
                blob.size
            )));
        }
        let body = fetch_small(self.client, &Get { target: target.clone(), ..Get::default() }, DOCUMENT_MAX).await?;
        digest::expect(&self.client.url(&target), blob.digest, Digest::of(&body))?;
        Ok(body)
    }

    /// Brings a blob into `spool`, which it empties first; its digest is checked before this returns. `progress` gets the
    /// number of bytes since the last call.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn blob(
        &self,
        blob: &Descriptor,
        spool: &mut File,
        mut progress: impl FnMut(u64) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let target = self.blob_path(blob);
        spool.set_len(0).and_then(|()| spool.rewind()).map_err(Failure::file("spool file"))?;
        let mut hash = Sha256::new();
        let mut out = BufWriter::with_capacity(256 << 10, &mut *spool);
        let bounds = Bounds { exact: Some(blob.size), max: blob.size };
        download(self.client, &target, bounds, |bytes, _total| {
            hash.update(bytes);
            out.write_all(bytes).map_err(Failure::file("spool file"))?;
            progress(bytes.len() as u64)
        })
        .await?;
        out.flush().map_err(Failure::file("spool file"))?;
        drop(out);
        digest::expect(&self.client.url(&target), blob.digest, Digest(hash.finalize().into()))?;
        spool.rewind().map_err(Failure::file("spool file"))
    }

    fn blob_path(&self, blob: &Descriptor) -> String {
        format!("/v2/{}/blobs/{}", self.name, blob.digest)
    }
}

fn is_tag(text: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    !text.is_empty() && text.len() <= 128 && text.bytes().all(ok) && !text.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_model::contract::fetch::Server;

    #[test]
    fn names_that_would_leave_the_repository_are_refused() {
        let server =
            Server { base_url: "http://h".into(), user: String::new(), password: String::new(), ca_pem: vec![] };
        let client = Client::new(&server).unwrap();
        for (name, good) in [
            ("library/nginx", true),
            ("a", true),
            ("a.b/c_d-e", true),
            ("", false),
            ("a//b", false),
            ("../x", false),
            ("a/..", false),
            ("A", false),
            ("a?x", false),
        ] {
            assert_eq!(Repository::new(&client, name).is_ok(), good, "{name:?}");
        }
        for (tag, good) in
            [("latest", true), ("1.25-alpine_3", true), ("", false), ("a/b", false), (".x", false), ("a?b", false)]
        {
            assert_eq!(is_tag(tag), good, "{tag:?}");
        }
    }
}
