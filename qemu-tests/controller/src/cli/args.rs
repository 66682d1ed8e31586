//! The command line.

use clap::{Args as ClapArgs, Parser, Subcommand};
use holdfast_test_controller::faults::{Action, Endpoint};
use holdfast_test_controller::pki::Role;
use std::net::SocketAddr;
use std::path::PathBuf;
use uuid::Uuid;

/// A small EVE v2 controller for one desk: devices register, get their configuration, and report.
#[derive(Parser)]
#[command(name = "holdfast-controller", version, max_term_width = 100)]
pub struct Args {
    /// Address of the admin API: where `serve` listens and where the other commands ask
    #[arg(long, global = true, env = "HOLDFAST_ADMIN", default_value = "127.0.0.1:8081", value_name = "ADDR:PORT")]
    pub admin: SocketAddr,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run the controller until Ctrl-C
    Serve(Serve),
    /// Write what a device needs to join: root certificate, onboarding certificate and key
    Material {
        /// Folder for root.pem, onboard.cert.pem and onboard.key.pem
        out: PathBuf,
    },
    /// Let devices with an onboarding certificate register
    Onboard {
        /// Onboarding certificate (PEM); without it, the controller's own ready-made one
        #[arg(long, value_name = "FILE")]
        cert: Option<PathBuf>,
        /// Serial that may register; may be given several times; `*` is any
        #[arg(long, default_value = "*", value_name = "SERIAL")]
        serial: Vec<String>,
    },
    /// List devices, or show or remove one
    #[command(subcommand)]
    Devices(Devices),
    /// Set or show the configuration of a device
    #[command(subcommand)]
    Config(Config),
    /// Show the last info message of every object of a device (JSON)
    Info(Device),
    /// Show the last metrics messages of a device (JSON)
    Metrics(Device),
    /// Print log lines of a device or of one of its apps
    Logs(Logs),
    /// Print the last requests
    Requests {
        /// Only this endpoint
        #[arg(long, value_name = "ENDPOINT")]
        on: Option<Endpoint>,
    },
    /// Make the controller misbehave
    #[command(subcommand)]
    Faults(Faults),
    /// Set or show the attestation policy
    #[command(subcommand)]
    Policy(Policy),
    /// Replace one of the controller's certificates: tls, signing or ecdh
    Rotate {
        /// Which
        role: Role,
    },
    /// Build, publish or list OCI images
    #[command(subcommand)]
    Image(Image),
}

#[derive(ClapArgs)]
pub struct Serve {
    /// Folder of certificates, devices and logs; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Address of the device API (HTTPS)
    #[arg(long, default_value = "127.0.0.1:8443", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// Address of the artifact server (HTTPS): files and images
    #[arg(long, default_value = "127.0.0.1:8444", value_name = "ADDR:PORT")]
    pub artifacts: SocketAddr,
    /// Name or address by which devices reach this machine; may be given several times
    #[arg(long = "name", value_name = "NAME", default_values = ["localhost", "127.0.0.1", "10.0.2.2"])]
    pub names: Vec<String>,
    /// Folder of files served below /files/
    #[arg(long, value_name = "DIR")]
    pub files: Option<PathBuf>,
    /// OCI layout to serve, as REPOSITORY=DIR; may be given several times
    #[arg(long = "image", value_name = "REPOSITORY=DIR")]
    pub images: Vec<String>,
    /// Issue signing certificates through an intermediate CA (only when the certificates are made)
    #[arg(long)]
    pub intermediate: bool,
    /// Answer as the reference controller (Adam) where it differs from the specification
    #[arg(long)]
    pub adam: bool,
}

#[derive(ClapArgs)]
pub struct Device {
    /// UUID of the device; not needed if there is only one
    #[arg(long, value_name = "UUID")]
    pub device: Option<Uuid>,
}

impl Device {
    /// How the admin API names it.
    pub fn id(&self) -> String {
        self.device.map_or_else(|| "-".to_owned(), |uuid| uuid.to_string())
    }
}

#[derive(Subcommand)]
pub enum Devices {
    /// One line for each device
    List,
    /// What is known of a device
    Show(Device),
    /// Forget a device and all it sent; its serial may register again
    Remove(Device),
}

#[derive(Subcommand)]
pub enum Config {
    /// Set the configuration from a file
    Set {
        /// Friendly document (JSON); with --wire an EdgeDevConfig
        file: PathBuf,
        /// The file is an EdgeDevConfig: protobuf's JSON, or binary if its name ends in .pb
        #[arg(long)]
        wire: bool,
        #[command(flatten)]
        device: Device,
    },
    /// Show the configuration as it was set
    Get {
        /// Show the EdgeDevConfig that is served
        #[arg(long)]
        wire: bool,
        #[command(flatten)]
        device: Device,
    },
    /// Print a document to start from
    Example,
}

#[derive(ClapArgs)]
pub struct Logs {
    /// Name or UUID of an app; without it, the device's own log
    #[arg(long, value_name = "APP")]
    pub app: Option<String>,
    /// Wait for more lines
    #[arg(long, short)]
    pub follow: bool,
    /// Print the JSON lines as they are
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub device: Device,
}

#[derive(Subcommand)]
pub enum Faults {
    /// Show the rules with how often each was used
    List,
    /// Add a rule
    Add {
        /// Endpoint to spoil; without it, all
        #[arg(long, value_name = "ENDPOINT")]
        on: Option<Endpoint>,
        /// status=CODE, bad-signature, wrong-sender-hash, replay, cut-before, cut-after=BYTES, delay=MS; for artifacts
        /// also truncate=BYTES, corrupt=OFFSET, throttle=BYTES_PER_SECOND
        #[arg(long)]
        action: Action,
        /// End after so many uses
        #[arg(long)]
        count: Option<u32>,
        /// End after so many seconds
        #[arg(long)]
        seconds: Option<u32>,
        /// Let so many requests pass first
        #[arg(long, default_value_t = 0)]
        skip: u32,
        /// Only requests whose path contains this
        #[arg(long, value_name = "TEXT")]
        path: Option<String>,
        #[command(flatten)]
        device: Device,
    },
    /// Remove one rule, or all
    Remove {
        /// Number of the rule; without it, all
        id: Option<u64>,
    },
}

#[derive(Subcommand)]
pub enum Policy {
    /// Show the policy
    Get,
    /// Set the policy from a JSON file
    Set {
        /// {"enforce": true, "templates": [{"pcrs": {"11": "HEX"}}], "event_log_must_lead_to": [0]}
        file: PathBuf,
    },
}

#[derive(Subcommand)]
pub enum Image {
    /// Build an image of one layer as an OCI layout
    Build {
        /// Folder that becomes the root of the image
        #[arg(long, value_name = "DIR")]
        root: PathBuf,
        /// Keep owners as in the folder instead of root for all
        #[arg(long)]
        keep_owners: bool,
        /// Program to run; may be given several times for its arguments
        #[arg(long, value_name = "WORD")]
        entrypoint: Vec<String>,
        /// KEY=VALUE; may be given several times
        #[arg(long, value_name = "KEY=VALUE")]
        env: Vec<String>,
        /// User, or USER:GROUP
        #[arg(long, default_value = "")]
        user: String,
        /// Folder the program starts in
        #[arg(long, default_value = "")]
        workdir: String,
        /// Port such as 80/tcp; may be given several times
        #[arg(long, value_name = "PORT")]
        expose: Vec<String>,
        /// Tag
        #[arg(long, default_value = "latest")]
        tag: String,
        /// Layout folder to write
        out: PathBuf,
    },
    /// Serve an OCI layout on the artifact server
    Publish {
        /// Repository, such as demo/webapp
        repository: String,
        /// Layout folder
        layout: PathBuf,
    },
    /// List what is served
    List,
}
