//! OCI and Docker image documents: index, manifest, configuration (OCI image spec 1.1; Docker manifest schema 2).
#![forbid(unsafe_code)]

use serde::Deserialize;

use crate::digest::{Digest, cut};
use crate::failure::Failure;
use holdfast_model::contract::fetch::ImageConfig;

/// Longest index, manifest or configuration.
pub const DOCUMENT_MAX: usize = 4 << 20;
/// Most layers of an image (Docker's own limit is 127).
pub const LAYERS_MAX: usize = 256;
/// What we ask a registry for.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// A blob by digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Digest.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
}

/// One platform's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The configuration.
    pub config: Descriptor,
    /// Layers, lowest first, as they are transferred.
    pub layers: Vec<Descriptor>,
}

/// An index or a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// Points to the manifest of our platform.
    Index(Descriptor),
    /// The manifest itself.
    Manifest(Manifest),
}

/// What is needed of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How to run it.
    pub run: ImageConfig,
    /// Digests of the layers unpacked, lowest first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct RawDocument {
    #[serde(rename = "schemaVersion")]
    schema_version: u32,
    manifests: Option<Vec<RawDescriptor>>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
struct RawDescriptor {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<RawPlatform>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<RawRun>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// Fields may be absent or null.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct RawRun {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

/// This machine's architecture in OCI's words (those of Go).
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Document {
    /// Reads an index or manifest called `what`.
    ///
    /// # Errors
    /// [`Failure`] of class Content.
    pub fn parse(bytes: &[u8], what: &str) -> Result<Self, Failure> {
        let raw: RawDocument = parse(bytes, what, "an image manifest or index")?;
        if raw.schema_version != 2 {
            let found = raw.schema_version;
            return Err(Failure::content(format!("{what}: expected schemaVersion 2, found {found}")));
        }
        if let Some(manifests) = raw.manifests {
            return Self::of_our_platform(manifests, what);
        }
        let (Some(config), Some(layers)) = (raw.config, raw.layers) else {
            return Err(Failure::content(format!("{what}: expected \"manifests\", or \"config\" and \"layers\"")));
        };
        if layers.len() > LAYERS_MAX {
            let found = layers.len();
            return Err(Failure::content(format!("{what}: expected at most {LAYERS_MAX} layers, found {found}")));
        }
        if let Some(odd) = layers.iter().find(|l| !l.media_type.is_empty() && !is_tar_layer(&l.media_type)) {
            return Err(Failure::content(format!(
                "{what}: layer {}: expected a tar layer, plain or gzip, found media type {:?}",
                cut(&odd.digest),
                cut(&odd.media_type)
            )));
        }
        let layers = layers.iter().map(|l| l.descriptor(what)).collect::<Result<_, _>>()?;
        Ok(Self::Manifest(Manifest { config: config.descriptor(what)?, layers }))
    }

    fn of_our_platform(manifests: Vec<RawDescriptor>, what: &str) -> Result<Self, Failure> {
        let ours = |d: &&RawDescriptor| {
            d.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == architecture())
        };
        if let Some(found) = manifests.iter().find(ours) {
            return Ok(Self::Index(found.descriptor(what)?));
        }
        let offered: Vec<String> = manifests
            .iter()
            .take(12)
            .filter_map(|d| d.platform.as_ref())
            .map(|p| format!("{}/{}", cut(&p.os), cut(&p.architecture)))
            .collect();
        Err(Failure::content(format!(
            "{what}: expected an image for linux/{}, found {}",
            architecture(),
            if offered.is_empty() { "no platform".to_owned() } else { offered.join(", ") }
        )))
    }
}

impl RawDescriptor {
    fn descriptor(&self, what: &str) -> Result<Descriptor, Failure> {
        Ok(Descriptor { digest: Digest::from_oci(&self.digest, what)?, size: self.size })
    }
}

impl Config {
    /// Reads an image configuration called `what`.
    ///
    /// # Errors
    /// [`Failure`] of class Content: another platform, or a number of layers that is not the manifest's.
    pub fn parse(bytes: &[u8], what: &str, layers: usize) -> Result<Self, Failure> {
        let raw: RawConfig = parse(bytes, what, "an image configuration")?;
        let platform = (raw.os.as_str(), raw.architecture.as_str());
        if platform != ("linux", architecture()) {
            return Err(Failure::content(format!(
                "{what}: expected an image for linux/{}, found {}/{}",
                architecture(),
                cut(&raw.os),
                cut(&raw.architecture)
            )));
        }
        let diff_ids: Vec<Digest> =
            raw.rootfs.diff_ids.iter().map(|d| Digest::from_oci(d, what)).collect::<Result<_, _>>()?;
        if diff_ids.len() != layers {
            let found = diff_ids.len();
            return Err(Failure::content(format!(
                "{what}: expected {layers} diff_ids as the manifest has layers, found {found}"
            )));
        }
        let run = raw.config.unwrap_or_default();
        Ok(Self {
            run: ImageConfig {
                entrypoint: run.entrypoint.unwrap_or_default(),
                cmd: run.cmd.unwrap_or_default(),
                env: run.env.unwrap_or_default(),
                user: run.user.unwrap_or_default(),
                working_dir: run.working_dir.unwrap_or_default(),
                stop_signal: run.stop_signal.unwrap_or_default(),
            },
            diff_ids,
        })
    }
}

/// Any bytes as an index, manifest or configuration.
#[doc(hidden)]
pub fn fuzz_manifest(data: &[u8]) {
    let _ = Document::parse(data, "fuzz");
    let _ = Config::parse(data, "fuzz", 1);
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str, expected: &str) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|e| Failure::content(format!("{what}: expected {expected}: {e}")))
}

fn is_tar_layer(media_type: &str) -> bool {
    let layer = media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.");
    layer && (media_type.ends_with("tar") || media_type.ends_with("tar.gzip") || media_type.ends_with("tar+gzip"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn digest(byte: &str) -> String {
        format!("sha256:{}", byte.repeat(32))
    }

    #[test]
    fn an_index_gives_our_platform_and_skips_attestations() {
        let json = format!(
            r#"{{"schemaVersion":2,"manifests":[
                {{"mediaType":"m","digest":"{}","size":1,"platform":{{"os":"unknown","architecture":"unknown"}}}},
                {{"mediaType":"m","digest":"{}","size":2,"platform":{{"os":"linux","architecture":"s390x"}}}},
                {{"mediaType":"m","digest":"{}","size":3,"platform":{{"os":"linux","architecture":"{}"}}}}]}}"#,
            digest("aa"),
            digest("bb"),
            digest("cc"),
            architecture()
        );
        let wanted = Descriptor { digest: Digest([0xcc; 32]), size: 3 };
        assert_eq!(Document::parse(json.as_bytes(), "x").unwrap(), Document::Index(wanted));
        let foreign = json.replace(&format!("\"architecture\":\"{}\"", architecture()), "\"architecture\":\"mips\"");
        let error = Document::parse(foreign.as_bytes(), "x").unwrap_err().text;
        assert!(error.contains("linux/s390x, linux/mips"), "{error}");
    }

    #[test]
    fn layers_that_we_cannot_unpack_are_named() {
        for (media_type, good) in [
            ("application/vnd.oci.image.layer.v1.tar+gzip", true),
            ("application/vnd.oci.image.layer.v1.tar", true),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", true),
            ("", true),
            ("application/vnd.oci.image.layer.v1.tar+zstd", false),
            ("application/vnd.example.thing", false),
        ] {
            let json = format!(
                r#"{{"schemaVersion":2,"config":{{"digest":"{0}","size":1}},"layers":[{{"mediaType":"{media_type}","digest":"{0}","size":1}}]}}"#,
                digest("aa")
            );
            assert_eq!(Document::parse(json.as_bytes(), "x").is_ok(), good, "{media_type}");
        }
    }

    #[test]
    fn a_configuration_may_leave_everything_out_but_platform_and_layers() {
        let json = format!(
            r#"{{"os":"linux","architecture":"{}","config":{{"Entrypoint":null,"Cmd":["a"],"User":"1:2"}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            architecture(),
            digest("aa")
        );
        let config = Config::parse(json.as_bytes(), "x", 1).unwrap();
        assert_eq!(config.run, ImageConfig { cmd: vec!["a".into()], user: "1:2".into(), ..ImageConfig::default() });
        assert!(Config::parse(json.as_bytes(), "x", 2).unwrap_err().text.contains("expected 2 diff_ids"));
        let foreign = json.replace("linux", "windows");
        assert!(Config::parse(foreign.as_bytes(), "x", 1).unwrap_err().text.contains("found windows/"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz_manifest(&data);
        }
    }
}
