//! Messages as JSON for people and tests (protobuf's canonical JSON form), by way of the descriptors of the API.

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use std::sync::LazyLock;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(include_bytes!(concat!(env!("OUT_DIR"), "/eve.fds")).as_slice())
        .expect("the descriptor set was made by this crate's build script")
});

/// Why a message could not be shown or read as JSON.
#[derive(Debug, thiserror::Error)]
#[error("{name} as JSON: {cause}")]
pub struct JsonError {
    /// Full name of the message.
    pub name: &'static str,
    /// What is wrong.
    pub cause: String,
}

/// Full names of the messages that are shown.
pub mod names {
    /// Info.
    pub const INFO: &str = "org.lfedge.eve.info.ZInfoMsg";
    /// Metrics.
    pub const METRICS: &str = "org.lfedge.eve.metrics.ZMetricMsg";
    /// Configuration.
    pub const CONFIG: &str = "org.lfedge.eve.config.EdgeDevConfig";
    /// Flow log.
    pub const FLOWLOG: &str = "org.lfedge.eve.flowlog.FlowMessage";
    /// Hardware health.
    pub const HARDWARE: &str = "org.lfedge.eve.hardwarehealth.ZHardwareHealth";
}

/// Shows encoded bytes of message `name` as JSON with the field names of the `.proto` files.
pub fn to_json(name: &'static str, bytes: &[u8]) -> Result<serde_json::Value, JsonError> {
    let fail = |cause: String| JsonError { name, cause };
    let descriptor = POOL.get_message_by_name(name).ok_or_else(|| fail("no such message".into()))?;
    let message = DynamicMessage::decode(descriptor, bytes).map_err(|e| fail(e.to_string()))?;
    let options = SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false);
    message.serialize_with_options(serde_json::value::Serializer, &options).map_err(|e| fail(e.to_string()))
}

/// Reads JSON as encoded bytes of message `name`.
pub fn from_json(name: &'static str, json: &str) -> Result<Vec<u8>, JsonError> {
    let fail = |cause: String| JsonError { name, cause };
    let descriptor = POOL.get_message_by_name(name).ok_or_else(|| fail("no such message".into()))?;
    let mut reader = serde_json::Deserializer::from_str(json);
    let message = DynamicMessage::deserialize(descriptor, &mut reader).map_err(|e| fail(e.to_string()))?;
    reader.end().map_err(|e| fail(e.to_string()))?;
    Ok(message.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::proto::config::{ConfigItem, EdgeDevConfig};

    #[test]
    fn a_configuration_goes_to_json_and_back() {
        let config = EdgeDevConfig {
            config_items: vec![ConfigItem { key: "k".into(), value: "v".into() }],
            controller_epoch: 7,
            ..Default::default()
        };
        let json = to_json(names::CONFIG, &config.encode_to_vec()).expect("json");
        assert_eq!(json["configItems"][0]["key"], "k");
        assert_eq!(json["controller_epoch"], 7);
        let bytes = from_json(names::CONFIG, &json.to_string()).expect("bytes");
        assert_eq!(EdgeDevConfig::decode(bytes.as_slice()).expect("config"), config);
        assert!(from_json(names::CONFIG, r#"{"nonsense":1}"#).is_err());
    }
}
