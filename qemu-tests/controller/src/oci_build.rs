//! Builds an OCI image (image-spec 1.1) of one layer as a layout folder, the same bytes for the same content: entries
//! sorted, times zero, owners as asked.
//!
//! ```text
//! LAYOUT/oci-layout, LAYOUT/index.json, LAYOUT/blobs/sha256/HEX (layer, config, manifest)
//! ```

use crate::artifacts::registry::{MANIFEST, REF_NAME};
use flate2::{Compression, GzBuilder};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use tar::{EntryType, Header};

/// What the image runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// More arguments.
    pub cmd: Vec<String>,
    /// `KEY=VALUE` each.
    pub env: Vec<String>,
    /// Name or number, with `:group` if wanted; empty: root.
    pub user: String,
    /// Folder it starts in; empty: `/`.
    pub working_dir: String,
    /// Ports such as `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Architecture in Go's words; empty: that of this machine.
    pub architecture: String,
}

/// Whose the files of the layer are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Owners {
    /// root's.
    #[default]
    Root,
    /// As in the folder.
    Keep,
}

/// An image that was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The layout folder.
    pub layout: PathBuf,
    /// `sha256:...` of the manifest.
    pub manifest_digest: String,
    /// `sha256:...` of the layer as sent.
    pub layer_digest: String,
    /// Bytes of the layer as sent.
    pub layer_bytes: u64,
}

/// Why an image was not built.
#[derive(Debug, thiserror::Error)]
#[error("image: {path}: {cause}")]
pub struct BuildImageError {
    /// File or folder.
    pub path: PathBuf,
    /// What went wrong.
    pub cause: String,
}

fn at<'a, E: ToString>(path: &'a Path) -> impl FnOnce(E) -> BuildImageError + 'a {
    move |error| BuildImageError { path: path.to_owned(), cause: error.to_string() }
}

/// Builds an image whose file system is the folder `root`; `tag` names it in the layout.
pub fn from_dir(
    root: &Path,
    owners: Owners,
    config: &ImageConfig,
    tag: &str,
    layout: &Path,
) -> Result<Built, BuildImageError> {
    build(layout, config, tag, |layer| {
        let mut links = HashMap::new();
        add_dir(layer, root, Path::new(""), owners, &mut links)
    })
}

/// Builds an image whose file system is the given tar stream, byte by byte.
pub fn from_tar(mut tar: impl Read, config: &ImageConfig, tag: &str, layout: &Path) -> Result<Built, BuildImageError> {
    build(layout, config, tag, |layer| io::copy(&mut tar, layer.get_mut()).map_err(at(layout)).map(|_| ()))
}

/// One file of an image that is given in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Permission bits.
    pub mode: u32,
    /// Content.
    pub content: Vec<u8>,
}

/// Builds an image of files in memory (path without leading slash); folders are made as needed.
pub fn from_files(
    files: &BTreeMap<String, Entry>,
    config: &ImageConfig,
    tag: &str,
    layout: &Path,
) -> Result<Built, BuildImageError> {
    build(layout, config, tag, |layer| {
        let mut dirs = std::collections::BTreeSet::new();
        for path in files.keys() {
            dirs.extend(Path::new(path).ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()));
        }
        for dir in dirs {
            let mut header = header(EntryType::Directory, 0o755, 0);
            layer.append_data(&mut header, dir, io::empty()).map_err(at(dir))?;
        }
        for (path, entry) in files {
            let mut header = header(EntryType::Regular, entry.mode, entry.content.len() as u64);
            layer.append_data(&mut header, path, entry.content.as_slice()).map_err(at(Path::new(path)))?;
        }
        Ok(())
    })
}

type Layer = tar::Builder<Hashing<flate2::write::GzEncoder<Hashing<BufWriter<File>>>>>;

/// Counts and hashes what goes through.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buf)?;
        self.hash.update(&buf[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode & 0o7777);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn build(
    layout: &Path,
    config: &ImageConfig,
    tag: &str,
    fill: impl FnOnce(&mut Layer) -> Result<(), BuildImageError>,
) -> Result<Built, BuildImageError> {
    let blobs = layout.join("blobs/sha256");
    // What another build left there would make the folder depend on history.
    if blobs.exists() {
        std::fs::remove_dir_all(&blobs).map_err(at(&blobs))?;
    }
    std::fs::create_dir_all(&blobs).map_err(at(&blobs))?;

    let temporary = blobs.join("layer.new");
    let file = File::create(&temporary).map_err(at(&temporary))?;
    // A gzip header with time zero and no name; the operating system byte is fixed for the same bytes everywhere.
    let gzip =
        GzBuilder::new().mtime(0).operating_system(255).write(Hashing::new(BufWriter::new(file)), Compression::new(6));
    let mut layer = tar::Builder::new(Hashing::new(gzip));
    fill(&mut layer)?;
    let plain = layer.into_inner().map_err(at(&temporary))?;
    let diff_id = format!("sha256:{}", hex::encode(plain.hash.finalize()));
    let mut packed = plain.inner.finish().map_err(at(&temporary))?;
    packed.flush().map_err(at(&temporary))?;
    let layer_hex = hex::encode(packed.hash.finalize());
    std::fs::rename(&temporary, blobs.join(&layer_hex)).map_err(at(&temporary))?;

    let architecture = match (config.architecture.as_str(), std::env::consts::ARCH) {
        ("", "x86_64") => "amd64",
        ("", "aarch64") => "arm64",
        ("", other) => other,
        (given, _) => given,
    };
    let mut run = serde_json::Map::new();
    let mut set = |name: &str, value: serde_json::Value, there: bool| {
        if there {
            run.insert(name.into(), value);
        }
    };
    set("Entrypoint", json!(config.entrypoint), !config.entrypoint.is_empty());
    set("Cmd", json!(config.cmd), !config.cmd.is_empty());
    set("Env", json!(config.env), !config.env.is_empty());
    set("User", json!(config.user), !config.user.is_empty());
    set("WorkingDir", json!(config.working_dir), !config.working_dir.is_empty());
    let ports: BTreeMap<_, _> = config.exposed_ports.iter().map(|port| (port, json!({}))).collect();
    set("ExposedPorts", json!(ports), !ports.is_empty());
    set("Labels", json!(config.labels), !config.labels.is_empty());
    let image = json!({
        "architecture": architecture,
        "os": "linux",
        "config": run,
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    let config_blob = write_blob(&blobs, image.to_string().as_bytes())?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_blob.0, "size": config_blob.1,
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": format!("sha256:{layer_hex}"), "size": packed.bytes,
        }],
    });
    let manifest_blob = write_blob(&blobs, manifest.to_string().as_bytes())?;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": MANIFEST,
            "digest": manifest_blob.0, "size": manifest_blob.1,
            "annotations": { REF_NAME: tag },
        }],
    });
    for (name, text) in [("oci-layout", json!({ "imageLayoutVersion": "1.0.0" })), ("index.json", index)] {
        let path = layout.join(name);
        std::fs::write(&path, text.to_string()).map_err(at(&path))?;
    }
    Ok(Built {
        layout: layout.to_owned(),
        manifest_digest: manifest_blob.0,
        layer_digest: format!("sha256:{layer_hex}"),
        layer_bytes: packed.bytes,
    })
}

/// Writes a blob under its digest; returns digest and size.
fn write_blob(blobs: &Path, content: &[u8]) -> Result<(String, usize), BuildImageError> {
    let hex = hex::encode(Sha256::digest(content));
    let path = blobs.join(&hex);
    std::fs::write(&path, content).map_err(at(&path))?;
    Ok((format!("sha256:{hex}"), content.len()))
}

/// Adds the content of a folder in the order of names. `links` holds the first path of each inode with several names.
fn add_dir(
    layer: &mut Layer,
    root: &Path,
    relative: &Path,
    owners: Owners,
    links: &mut HashMap<(u64, u64), PathBuf>,
) -> Result<(), BuildImageError> {
    let dir = root.join(relative);
    let mut names: Vec<_> = std::fs::read_dir(&dir)
        .and_then(|entries| entries.map(|entry| entry.map(|e| e.file_name())).collect())
        .map_err(at(&dir))?;
    names.sort();
    for name in names {
        let relative = relative.join(&name);
        let path = root.join(&relative);
        let data = std::fs::symlink_metadata(&path).map_err(at(&path))?;
        let kind = data.file_type();
        let entry_type = if kind.is_dir() {
            EntryType::Directory
        } else if kind.is_symlink() {
            EntryType::Symlink
        } else if kind.is_char_device() {
            EntryType::Char
        } else if kind.is_block_device() {
            EntryType::Block
        } else if kind.is_fifo() {
            EntryType::Fifo
        } else if kind.is_file() {
            EntryType::Regular
        } else {
            // A socket lives as long as its server and means nothing in an image.
            continue;
        };
        let mut header = header(entry_type, data.mode(), if kind.is_file() { data.len() } else { 0 });
        if owners == Owners::Keep {
            header.set_uid(u64::from(data.uid()));
            header.set_gid(u64::from(data.gid()));
        }
        if kind.is_char_device() || kind.is_block_device() {
            let (major, minor) = (data.rdev() >> 8 & 0xfff, data.rdev() & 0xff | data.rdev() >> 12 & 0xfff00);
            let number = |n: u64| u32::try_from(n).unwrap_or(0);
            header.set_device_major(number(major)).map_err(at(&path))?;
            header.set_device_minor(number(minor)).map_err(at(&path))?;
        }
        if kind.is_file() && data.nlink() > 1 {
            if let Some(first) = links.get(&(data.dev(), data.ino())) {
                header.set_entry_type(EntryType::Link);
                header.set_size(0);
                layer.append_link(&mut header, &relative, first).map_err(at(&path))?;
                continue;
            }
            links.insert((data.dev(), data.ino()), relative.clone());
        }
        if kind.is_symlink() {
            let target = std::fs::read_link(&path).map_err(at(&path))?;
            layer.append_link(&mut header, &relative, target).map_err(at(&path))?;
        } else if kind.is_file() {
            let file = File::open(&path).map_err(at(&path))?;
            layer.append_data(&mut header, &relative, file).map_err(at(&path))?;
        } else {
            layer.append_data(&mut header, &relative, io::empty()).map_err(at(&path))?;
        }
        if kind.is_dir() {
            add_dir(layer, root, &relative, owners, links)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir_all(dir.path().join("bin/sub")).expect("mkdir");
        std::fs::write(dir.path().join("bin/app"), "program").expect("write");
        std::fs::hard_link(dir.path().join("bin/app"), dir.path().join("bin/same")).expect("link");
        std::os::unix::fs::symlink("app", dir.path().join("bin/sym")).expect("symlink");
        dir
    }

    fn config() -> ImageConfig {
        ImageConfig { entrypoint: vec!["/bin/app".into()], env: vec!["A=b".into()], ..ImageConfig::default() }
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        let (one, two, out) = (tree(), tree(), tempfile::tempdir().expect("tempdir"));
        let build = |root: &Path, name: &str| {
            from_dir(root, Owners::Root, &config(), "1", &out.path().join(name)).expect("built")
        };
        let (a, b) = (build(one.path(), "a"), build(two.path(), "b"));
        assert_eq!(a.manifest_digest, b.manifest_digest);
        std::fs::write(two.path().join("bin/app"), "changed").expect("write");
        assert_ne!(build(two.path(), "b").layer_digest, a.layer_digest);
    }

    #[test]
    fn a_layer_holds_links_modes_and_owners() {
        let (root, out) = (tree(), tempfile::tempdir().expect("tempdir"));
        let built = from_dir(root.path(), Owners::Root, &config(), "1", out.path()).expect("built");
        let hex = built.layer_digest.trim_start_matches("sha256:");
        let file = File::open(out.path().join("blobs/sha256").join(hex)).expect("layer");
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
        let entries: Vec<(String, EntryType, u64)> = archive
            .entries()
            .expect("entries")
            .map(|entry| {
                let entry = entry.expect("entry");
                assert_eq!(entry.header().mtime().expect("mtime"), 0);
                let name = entry.path().expect("path").display().to_string();
                (name, entry.header().entry_type(), entry.header().uid().expect("uid"))
            })
            .collect();
        let expected = [
            ("bin", EntryType::Directory),
            ("bin/app", EntryType::Regular),
            ("bin/same", EntryType::Link),
            ("bin/sub", EntryType::Directory),
            ("bin/sym", EntryType::Symlink),
        ];
        let expected: Vec<_> = expected.iter().map(|(name, kind)| ((*name).to_owned(), *kind, 0)).collect();
        let trimmed: Vec<_> = entries.into_iter().map(|(n, k, u)| (n.trim_end_matches('/').to_owned(), k, u)).collect();
        assert_eq!(trimmed, expected);
    }
}
