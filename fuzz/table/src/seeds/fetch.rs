//! Seeds of what `fetch` gets from registries, and of its report.

use super::{Seeds, texts};

/// `WWW-Authenticate` values.
#[must_use]
pub fn challenge() -> Seeds {
    texts(&[
        r#"Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull""#,
        r#"Basic realm="x \" y""#,
    ])
}

/// A layer: a file, a folder, links and a whiteout.
#[must_use]
pub fn tar() -> Seeds {
    let mut builder = tar::Builder::new(Vec::new());
    let add = |builder: &mut tar::Builder<Vec<u8>>, kind, name: &str, link: &str, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        if !link.is_empty() {
            let _ = header.set_link_name(link);
        }
        let _ = builder.append_data(&mut header, name, data);
    };
    use tar::EntryType;
    add(&mut builder, EntryType::Directory, "etc/", "", b"");
    add(&mut builder, EntryType::Regular, "etc/passwd", "", b"root:x:0:0::/root:/bin/sh\n");
    add(&mut builder, EntryType::Symlink, "etc/link", "passwd", b"");
    add(&mut builder, EntryType::Link, "etc/hard", "etc/passwd", b"");
    add(&mut builder, EntryType::Regular, "etc/.wh.old", "", b"");
    add(&mut builder, EntryType::XHeader, "pax", "", b"21 path=etc/longname\n20 SCHILY.xattr.a=b\n");
    builder.into_inner().into_iter().collect()
}

/// Manifest, index and configuration.
#[must_use]
pub fn manifest() -> Seeds {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":9}},
        "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":99}}]}}"#
    );
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":9,"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#
    );
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Entrypoint":["/a"],"Cmd":["b"],"Env":["A=1"],"User":"0","WorkingDir":"/","StopSignal":"SIGTERM"}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#
    );
    texts(&[&manifest, &index, &config])
}

/// Report lines and a job of `fetch`.
#[must_use]
pub fn fetch_report() -> Seeds {
    texts(&[
        r#"{"progress":{"phase":"downloading","bytes":5,"total":10}}"#,
        r#"{"failed":{"class":"content","text":"x"}}"#,
        r#"{"report_fd":4,"server":{"base_url":"https://a","user":"","password":"","ca_pem":[]},"task":{"oci":{"repository":"a","reference":"b","sha256":"","max_bytes":0,"output_fd":5,"spool_fd":6}}}"#,
    ])
}
