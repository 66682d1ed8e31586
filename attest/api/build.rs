//! Compiles the `.proto` files of this folder into Rust types, without `protoc`, and writes down the names of all fields of the config,
//! so that the device can name the ones it does not act on without carrying descriptors.

use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The message from which all of the config is reached.
const CONFIG: &str = ".org.lfedge.eve.config.EdgeDevConfig";

fn main() {
    let root = Path::new("proto");
    println!("cargo:rerun-if-changed=proto");
    let mut files = Vec::new();
    collect(root, &mut files);
    files.sort();
    let descriptors =
        protox::compile(&files, [root]).unwrap_or_else(|error| panic!("proto files of holdfast-api: {error:?}"));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_else(|| panic!("cargo sets OUT_DIR")));
    write(&out.join("config_fields.rs"), config_fields(&descriptors).as_bytes());
    write(&out.join("descriptors.bin"), &prost::Message::encode_to_vec(&descriptors));
    prost_build::Config::new()
        .compile_fds(descriptors)
        .unwrap_or_else(|error| panic!("Rust types from the proto files of holdfast-api: {error}"));
}

fn write(path: &Path, content: &[u8]) {
    std::fs::write(path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Adds every `.proto` file below `dir` to `files`.
fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    for entry in entries {
        let path = entry.unwrap_or_else(|error| panic!("{}: {error}", dir.display())).path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
}

/// The table `MESSAGES`: each message that the config can hold, itself first, with number, name and message of each field.
/// Maps, scalars and messages of other packages than EVE's are leaves.
fn config_fields(descriptors: &FileDescriptorSet) -> String {
    let mut all = BTreeMap::new();
    for file in &descriptors.file {
        for message in &file.message_type {
            add(&format!(".{}", file.package()), message, &mut all);
        }
    }
    let mut order = vec![CONFIG.to_owned()];
    let mut rows = String::new();
    let mut done = 0;
    while done < order.len() {
        let message = all.get(&order[done]).unwrap_or_else(|| panic!("{}: expected in the proto files", order[done]));
        let mut fields = String::new();
        for field in &message.field {
            let mut below = "None".to_owned();
            let known = all.get(field.type_name()).filter(|m| !m.options.as_ref().is_some_and(|o| o.map_entry()));
            if field.r#type() == Type::Message && known.is_some() && field.type_name().starts_with(".org.lfedge.") {
                let found = order.iter().position(|name| name == field.type_name());
                let index = found.unwrap_or_else(|| {
                    order.push(field.type_name().to_owned());
                    order.len() - 1
                });
                below = format!("Some({index})");
            }
            write!(fields, "({}, {:?}, {below}), ", field.number(), field.name()).unwrap_or_default();
        }
        writeln!(rows, "    Message {{ name: {:?}, fields: &[{fields}] }},", message.name()).unwrap_or_default();
        done += 1;
    }
    format!("pub(super) static MESSAGES: &[Message] = &[\n{rows}];\n")
}

fn add<'a>(scope: &str, message: &'a DescriptorProto, all: &mut BTreeMap<String, &'a DescriptorProto>) {
    let name = format!("{scope}.{}", message.name());
    for nested in &message.nested_type {
        add(&name, nested, all);
    }
    all.insert(name, message);
}
