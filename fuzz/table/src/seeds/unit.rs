//! Seeds of what units and guests say to each other.

use super::{Seeds, texts};
use holdfast_supervise::message::Request;
use holdfast_supervise::{UnitName, UnitSpec};

/// Requests to PID 1.
#[must_use]
pub fn supervise_packet() -> Seeds {
    let Ok(name) = UnitName::new("vmm-1") else {
        return vec![];
    };
    let spec = UnitSpec::new(name.clone(), "/bin/vmm", 2000);
    let requests = [
        Request::Start(Box::new(spec)),
        Request::Stop { name: name.clone(), deadline_ms: Some(5) },
        Request::Logs { after: 7, unit: Some(name), max: 100 },
        Request::Reboot { reason: "update".into() },
    ];
    requests.iter().filter_map(|r| serde_json::to_vec(r).ok()).collect()
}

/// Unit names and app names.
#[must_use]
pub fn names() -> Seeds {
    texts(&["vmm-00000000-0000-0000-0000-000000000007", "node", "My App_1 \u{fc}"])
}

/// Last words.
#[must_use]
pub fn last_words() -> Seeds {
    [
        r#"{"class":"power-off","reason":"guest power-off"}"#,
        r#"{"class":{"guest-exit":{"code":3}},"reason":"the program ended with exit code 3"}"#,
        r#"{"class":"resource","reason":"disk rootfs: cannot lock inherited fd 8"}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

/// `user` and the files it is looked up in.
#[must_use]
pub fn account() -> Seeds {
    texts(&[
        "web:7\nroot:x:0:0:root:/root:/bin/sh\nweb:x:101:102:web:/var/www:/bin/false\nvideo:x:44:web\n",
        "101:102\n",
    ])
}

/// The app document, padded as on its disk.
#[must_use]
pub fn document() -> Seeds {
    let mut bytes = br#"{"version":1,"hostname":"web","argv":["/bin/server","-v"],"env":["A=1"],"user":"","cwd":"","stop_signal":"","grace_seconds":10,"mounts":[{"disk":"vol0","at":"/data","read_only":false}]}"#.to_vec();
    let plain = bytes.clone();
    bytes.resize(512, 0);
    vec![plain, bytes]
}
