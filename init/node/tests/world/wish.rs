//! What a controller wants, in the bytes of its config.

use holdfast_api::config::to_desired;
use holdfast_api::proto::config::{
    AppInstanceConfig, ConfigItem, ContentTree, DatastoreConfig, DeviceOpsCmd, EdgeDevConfig, InstanceOpsCmd,
    UuiDandVersion, VmConfig, Volume, VolumeContentOrigin, VolumeRef,
};
use holdfast_model::Uuid;
use holdfast_model::desired::Desired;
use prost::Message;
use std::collections::BTreeMap;

/// Where an app of the config has a typing mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mistake {
    #[default]
    None,
    /// In the app itself.
    App,
    /// In its volume.
    Volume,
    /// In its image.
    Content,
    /// In where its image comes from.
    Datastore,
}

/// One app with an image and a volume of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    pub active: bool,
    pub restart: u32,
    pub purge: u32,
    pub memory_mib: u32,
    /// Tag of its image.
    pub image: u32,
    pub mistake: Mistake,
}

impl Default for App {
    fn default() -> Self {
        Self { active: true, restart: 0, purge: 0, memory_mib: 64, image: 1, mistake: Mistake::None }
    }
}

/// Everything that is wanted: apps by number, and the reboot command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish(pub BTreeMap<u8, App>, pub Reboots);

/// Counter of the reboot command.
pub type Reboots = u32;

impl Wish {
    /// Apps 1 to `n`.
    pub fn of(n: u8) -> Self {
        Self((1..=n).map(|n| (n, App::default())).collect(), 0)
    }

    /// The same with another form of one app.
    pub fn with(mut self, n: u8, change: impl FnOnce(&mut App)) -> Self {
        change(self.0.entry(n).or_default());
        self
    }

    /// The same without one app.
    pub fn without(mut self, n: u8) -> Self {
        self.0.remove(&n);
        self
    }

    /// The same without mistakes.
    pub fn correct(mut self) -> Self {
        self.0.values_mut().for_each(|app| app.mistake = Mistake::None);
        self
    }

    /// The same with one more reboot of the device.
    pub fn rebooted(mut self) -> Self {
        self.1 += 1;
        self
    }

    /// The way of all configs: to bytes and back.
    pub fn desired(&self) -> Desired {
        let bytes = self.config().encode_to_vec();
        to_desired(&EdgeDevConfig::decode(bytes.as_slice()).unwrap(), None)
    }

    fn config(&self) -> EdgeDevConfig {
        let mut config = EdgeDevConfig {
            id: named(uuid(0, 0)),
            config_items: vec![
                ConfigItem { key: "timer.download.retry".into(), value: "60".into() },
                ConfigItem { key: "timer.boot.retry".into(), value: "60".into() },
            ],
            reboot: Some(DeviceOpsCmd { counter: self.1, desired_state: true, ..DeviceOpsCmd::default() }),
            ..EdgeDevConfig::default()
        };
        for (n, app) in &self.0 {
            add(&mut config, *n, app);
        }
        config
    }
}

fn add(config: &mut EdgeDevConfig, n: u8, app: &App) {
    let [store, tree, volume] = [2, 3, 4].map(|kind| uuid(kind, n).to_string());
    let is = |mistake: Mistake, text: &str| if app.mistake == mistake { String::new() } else { text.to_owned() };
    config.datastores.push(DatastoreConfig {
        id: store.clone(),
        d_type: 5,
        fqdn: is(Mistake::Datastore, &format!("docker://registry{n}")),
        ..DatastoreConfig::default()
    });
    config.content_info.push(ContentTree {
        uuid: tree.clone(),
        ds_id: store,
        url: is(Mistake::Content, &format!("app{n}:{}", app.image)),
        iformat: 8,
        generation_count: i64::from(app.image),
        display_name: format!("image{n}"),
        ..ContentTree::default()
    });
    config.volumes.push(Volume {
        uuid: volume.clone(),
        origin: Some(VolumeContentOrigin { r#type: 2, download_content_tree_id: tree }),
        maxsizebytes: if app.mistake == Mistake::Volume { -1 } else { 1 << 30 },
        display_name: format!("volume{n}"),
        ..Volume::default()
    });
    let counter = |counter| (counter > 0).then(|| InstanceOpsCmd { counter, ..InstanceOpsCmd::default() });
    config.apps.push(AppInstanceConfig {
        uuidandversion: named(app_id(n)),
        displayname: format!("app{n}"),
        fixedresources: Some(VmConfig {
            memory: app.memory_mib * 1024,
            vcpus: u32::from(app.mistake != Mistake::App),
            virtualization_mode: 1,
            ..VmConfig::default()
        }),
        activate: app.active,
        volume_ref_list: vec![VolumeRef { uuid: volume, ..VolumeRef::default() }],
        restart: counter(app.restart),
        purge: counter(app.purge),
        ..AppInstanceConfig::default()
    });
}

/// Id of an app.
pub fn app_id(n: u8) -> Uuid {
    uuid(1, n)
}

/// Id of an app's volume.
pub fn volume_id(n: u8) -> Uuid {
    uuid(4, n)
}

fn uuid(kind: u128, n: u8) -> Uuid {
    Uuid::from_u128(kind << 64 | 0x4000_8000_0000_0000_0000 | u128::from(n))
}

fn named(id: Uuid) -> Option<UuiDandVersion> {
    Some(UuiDandVersion { uuid: id.to_string(), version: "1".into() })
}
