//! Reading a part's own file, field by field.
//!
//! Another version of the agent may have written it: a newer one before a fallback, or an older one. A field that this version does
//! not know is ignored, one that is missing has its default, and one that cannot be read costs itself alone, down to the single
//! entry of a map. What was lost is said.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Reads a part's file; `None` when there is none. The texts say what was lost.
#[must_use]
pub fn decode<T: DeserializeOwned + Default>(name: &str, bytes: Option<&[u8]>) -> (T, Vec<String>) {
    let Some(bytes) = bytes else { return (T::default(), Vec::new()) };
    let fields = match serde_json::from_slice(bytes) {
        Ok(Value::Object(fields)) => fields,
        Ok(_) => return (T::default(), vec![format!("{name}: expected a JSON object; its part starts afresh")]),
        Err(e) => return (T::default(), vec![format!("{name}: expected JSON: {e}; its part starts afresh")]),
    };
    if let Ok(whole) = T::deserialize(&Value::Object(fields.clone())) {
        return (whole, Vec::new());
    }
    let mut reading = Reading { root: Value::Object(Map::new()), lost: Vec::new(), fits: fits::<T> };
    for (key, value) in fields {
        reading.take(&mut vec![key], value);
    }
    let Reading { root, lost, .. } = reading;
    let texts = lost.iter().map(|field| format!("{name}: {field} cannot be read and is lost")).collect();
    (serde_json::from_value(root).unwrap_or_default(), texts)
}

fn fits<T: DeserializeOwned>(root: &Value) -> bool {
    T::deserialize(root).is_ok()
}

struct Reading {
    /// What could be read so far.
    root: Value,
    lost: Vec<String>,
    fits: fn(&Value) -> bool,
}

impl Reading {
    /// Takes a value in at its path: whole, else as much of it as fits.
    fn take(&mut self, path: &mut Vec<String>, value: Value) {
        let parts = match &value {
            Value::Object(parts) => Some(parts.clone()),
            _ => None,
        };
        if self.set(path, value) {
            return;
        }
        if let Some(parts) = parts
            && self.set(path, Value::Object(Map::new()))
        {
            for (key, value) in parts {
                path.push(key);
                self.take(path, value);
                path.pop();
            }
            return;
        }
        self.lost.push(path.join("."));
    }

    /// Sets the value at a path; takes it back when the whole does not fit any more.
    fn set(&mut self, path: &[String], value: Value) -> bool {
        let Some((last, before)) = path.split_last() else { return false };
        let folder = before.iter().try_fold(&mut self.root, |at, key| at.get_mut(key)).and_then(Value::as_object_mut);
        let Some(folder) = folder else { return false };
        folder.insert(last.clone(), value);
        if (self.fits)(&self.root) {
            return true;
        }
        let folder = before.iter().try_fold(&mut self.root, |at, key| at.get_mut(key)).and_then(Value::as_object_mut);
        if let Some(folder) = folder {
            folder.remove(last);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct File {
        reason: Option<Reason>,
        counter: u32,
        apps: BTreeMap<String, App>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Reason {
        Known,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct App {
        number: Option<u32>,
        purge: u32,
    }

    fn read(text: &str) -> (File, Vec<String>) {
        decode("file.json", Some(text.as_bytes()))
    }

    #[test]
    fn what_is_missing_has_its_default_and_what_is_unknown_is_ignored() {
        assert_eq!(decode::<File>("file.json", None), (File::default(), vec![]));
        let (file, lost) = read(r#"{"counter": 3, "of a newer version": [1]}"#);
        assert_eq!((file.counter, lost), (3, vec![]));
    }

    #[test]
    fn a_field_that_cannot_be_read_costs_itself_alone() {
        let text = r#"{"reason": "of-a-newer-version", "counter": 7,
            "apps": {"a": {"number": 1, "purge": 5}, "b": {"number": "two", "purge": 6}, "c": 9}}"#;
        let (file, lost) = read(text);
        assert_eq!((file.reason, file.counter), (None, 7));
        assert_eq!(file.apps["a"], App { number: Some(1), purge: 5 });
        assert_eq!(file.apps["b"], App { number: None, purge: 6 }, "its counter is not lost with its number");
        assert_eq!(file.apps.len(), 2);
        let lost: Vec<&str> = lost.iter().map(|text| text.split(' ').nth(1).unwrap()).collect();
        assert_eq!(lost, ["apps.b.number", "apps.c", "reason"]);
    }

    #[test]
    fn a_file_that_is_no_object_is_named() {
        for text in ["", "{", "[]"] {
            let (file, lost) = read(text);
            assert_eq!(file, File::default());
            assert!(lost[0].starts_with("file.json: expected ") && lost[0].ends_with("starts afresh"), "{lost:?}");
        }
    }
}
