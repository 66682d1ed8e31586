//! Misbehaviour on demand: rules that spoil answers, a number of times or for a while.
//!
//! Rules live in memory only: a restarted controller behaves. The first rule that matches a request is used.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    /// GET ping.
    Ping,
    /// GET certs.
    Certs,
    /// POST register.
    Register,
    /// POST uuid.
    Uuid,
    /// POST attest.
    Attest,
    /// POST config.
    Config,
    /// POST info.
    Info,
    /// POST metrics.
    Metrics,
    /// POST newlogs of the device.
    Newlogs,
    /// POST newlogs of an app.
    AppNewlogs,
    /// POST flowlog.
    Flowlog,
    /// POST hardwarehealth.
    Hardwarehealth,
    /// A file of the artifact server.
    File,
    /// A manifest of the registry.
    Manifest,
    /// A blob of the registry.
    Blob,
    /// The registry's token service.
    Token,
    /// Any other path.
    Other,
}

/// All endpoints with their names on the command line.
pub const ENDPOINTS: [(Endpoint, &str); 17] = [
    (Endpoint::Ping, "ping"),
    (Endpoint::Certs, "certs"),
    (Endpoint::Register, "register"),
    (Endpoint::Uuid, "uuid"),
    (Endpoint::Attest, "attest"),
    (Endpoint::Config, "config"),
    (Endpoint::Info, "info"),
    (Endpoint::Metrics, "metrics"),
    (Endpoint::Newlogs, "newlogs"),
    (Endpoint::AppNewlogs, "app-newlogs"),
    (Endpoint::Flowlog, "flowlog"),
    (Endpoint::Hardwarehealth, "hardwarehealth"),
    (Endpoint::File, "file"),
    (Endpoint::Manifest, "manifest"),
    (Endpoint::Blob, "blob"),
    (Endpoint::Token, "token"),
    (Endpoint::Other, "other"),
];

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = ENDPOINTS.iter().find(|(e, _)| e == self).map_or("?", |(_, n)| n);
        f.write_str(name)
    }
}

impl FromStr for Endpoint {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        ENDPOINTS.iter().find(|(_, n)| *n == text).map(|(e, _)| *e).ok_or_else(|| {
            let names: Vec<_> = ENDPOINTS.iter().map(|(_, n)| *n).collect();
            format!("endpoint {text:?}: expected one of {}", names.join(", "))
        })
    }
}

/// How the answer is spoilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Action {
    /// Answer with this status and no body; the request has no effect.
    Status {
        /// HTTP status, 400..=599.
        code: u16,
    },
    /// Answer with a signature that does not verify; the request has its effect.
    BadSignature,
    /// Answer with a sender hash that names no certificate.
    WrongSenderHash,
    /// Answer with the body of the previous answer of this endpoint to this device, byte by byte.
    Replay,
    /// Close the connection before the request has an effect.
    CutBefore,
    /// Let the request have its effect, then close after so many bytes of the answer (head included).
    CutAfter {
        /// Bytes that still go out.
        bytes: u64,
    },
    /// Wait, then behave.
    Delay {
        /// Milliseconds, at most ten minutes.
        ms: u64,
    },
    /// Artifacts only: announce the full length, send so many bytes of the body, close.
    Truncate {
        /// Bytes of the body that still go out.
        bytes: u64,
    },
    /// Artifacts only: flip one bit of the byte at this offset.
    Corrupt {
        /// Offset in the whole file or blob.
        offset: u64,
    },
    /// Artifacts only: send no faster than this.
    Throttle {
        /// Bytes per second, at least 1.
        bytes_per_second: u64,
    },
}

impl FromStr for Action {
    type Err = String;

    /// Reads the form of the command line, such as `status=503` or `bad-signature`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let number =
            || value.parse::<u64>().map_err(|_| format!("action {name}: expected {name}=NUMBER, found {text:?}"));
        let action = match name {
            "status" => Self::Status {
                code: u16::try_from(number()?).map_err(|_| format!("action status: {value} is no HTTP status"))?,
            },
            "bad-signature" => Self::BadSignature,
            "wrong-sender-hash" => Self::WrongSenderHash,
            "replay" => Self::Replay,
            "cut-before" => Self::CutBefore,
            "cut-after" => Self::CutAfter { bytes: number()? },
            "delay" => Self::Delay { ms: number()? },
            "truncate" => Self::Truncate { bytes: number()? },
            "corrupt" => Self::Corrupt { offset: number()? },
            "throttle" => Self::Throttle { bytes_per_second: number()? },
            other => {
                return Err(format!(
                    "action {other:?}: expected status=CODE, bad-signature, wrong-sender-hash, replay, cut-before, \
                     cut-after=BYTES, delay=MS, truncate=BYTES, corrupt=OFFSET or throttle=BYTES_PER_SECOND"
                ));
            }
        };
        action.check()?;
        Ok(action)
    }
}

impl Action {
    /// Checks the ranges.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Status { code } if !(400..=599).contains(code) => {
                Err(format!("action status: expected 400..=599, found {code}"))
            }
            Self::Delay { ms } if *ms > 600_000 => Err(format!("action delay: expected at most 600000 ms, found {ms}")),
            Self::Throttle { bytes_per_second: 0 } => {
                Err("action throttle: expected at least 1 byte per second".into())
            }
            _ => Ok(()),
        }
    }
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What is spoilt; `None` spoils every endpoint.
    #[serde(default)]
    pub on: Option<Endpoint>,
    /// Only requests of this device (not for artifacts: they are not signed).
    #[serde(default)]
    pub device: Option<Uuid>,
    /// Only requests whose path contains this.
    #[serde(default)]
    pub path_contains: Option<String>,
    /// How.
    pub action: Action,
    /// So many matching requests pass first.
    #[serde(default)]
    pub skip: u32,
    /// The rule ends after so many uses; `None`: no limit.
    #[serde(default)]
    pub count: Option<u32>,
    /// The rule ends after so many seconds; `None`: no limit.
    #[serde(default)]
    pub seconds: Option<u32>,
}

impl Rule {
    /// A rule for one endpoint without limits.
    pub fn new(on: Endpoint, action: Action) -> Self {
        Self { on: Some(on), device: None, path_contains: None, action, skip: 0, count: None, seconds: None }
    }

    /// Ends after `count` uses.
    pub fn times(mut self, count: u32) -> Self {
        self.count = Some(count);
        self
    }

    /// Lets `skip` matching requests pass first.
    pub fn after(mut self, skip: u32) -> Self {
        self.skip = skip;
        self
    }

    /// Ends after `seconds`.
    pub fn for_seconds(mut self, seconds: u32) -> Self {
        self.seconds = Some(seconds);
        self
    }
}

/// A rule in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Active {
    /// Number by which it is removed.
    pub id: u64,
    /// The rule as it was given.
    pub rule: Rule,
    /// How often it was used.
    pub used: u32,
    #[serde(skip)]
    seen: u32,
    #[serde(skip)]
    since: Option<Instant>,
}

/// All rules in force.
#[derive(Debug, Default)]
pub struct Faults {
    next: u64,
    rules: Vec<Active>,
}

/// Most rules at a time.
pub const MAX_RULES: usize = 1000;

impl Faults {
    /// Adds a rule and returns its number.
    pub fn add(&mut self, rule: Rule) -> Result<u64, String> {
        rule.action.check()?;
        if self.rules.len() >= MAX_RULES {
            return Err(format!("faults: at most {MAX_RULES} rules"));
        }
        self.next += 1;
        self.rules.push(Active { id: self.next, rule, used: 0, seen: 0, since: Some(Instant::now()) });
        Ok(self.next)
    }

    /// Removes one rule, or all.
    pub fn remove(&mut self, id: Option<u64>) -> usize {
        let before = self.rules.len();
        self.rules.retain(|active| id.is_some_and(|id| id != active.id));
        before - self.rules.len()
    }

    /// The rules, including those that are used up.
    pub fn list(&self) -> &[Active] {
        &self.rules
    }

    /// The action for one request, if a rule matches it.
    pub fn take(&mut self, endpoint: Endpoint, device: Option<Uuid>, path: &str) -> Option<Action> {
        for active in &mut self.rules {
            let rule = &active.rule;
            let matches = rule.on.is_none_or(|on| on == endpoint)
                && rule.device.is_none_or(|wanted| device == Some(wanted))
                && rule.path_contains.as_ref().is_none_or(|part| path.contains(part));
            let over = rule.count.is_some_and(|count| active.used >= count)
                || rule.seconds.is_some_and(|seconds| {
                    active.since.is_some_and(|since| since.elapsed() >= Duration::from_secs(seconds.into()))
                });
            if !matches || over {
                continue;
            }
            active.seen = active.seen.saturating_add(1);
            if active.seen > rule.skip {
                active.used = active.used.saturating_add(1);
                return Some(rule.action);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_skips_then_acts_then_ends() {
        let mut faults = Faults::default();
        let rule = Rule::new(Endpoint::Config, Action::Status { code: 503 }).after(1).times(2);
        faults.add(rule).expect("rule");
        let mut take = |on| faults.take(on, None, "/x").is_some();
        assert!(!take(Endpoint::Info));
        assert_eq!([0; 4].map(|_| take(Endpoint::Config)), [false, true, true, false]);
    }

    #[test]
    fn rules_are_for_one_device_or_path() {
        let mut faults = Faults::default();
        let device = Uuid::from_u128(1);
        let mut rule = Rule::new(Endpoint::Info, Action::Replay);
        rule.device = Some(device);
        rule.path_contains = Some("abc".into());
        let id = faults.add(rule).expect("rule");
        assert_eq!(faults.take(Endpoint::Info, None, "/abc"), None);
        assert_eq!(faults.take(Endpoint::Info, Some(device), "/x"), None);
        assert_eq!(faults.take(Endpoint::Info, Some(device), "/abc"), Some(Action::Replay));
        assert_eq!(faults.remove(Some(id)), 1);
        assert_eq!(faults.take(Endpoint::Info, Some(device), "/abc"), None);
    }

    #[test]
    fn actions_are_read_from_the_command_line() {
        let cases = [
            ("status=503", Action::Status { code: 503 }),
            ("bad-signature", Action::BadSignature),
            ("cut-after=10", Action::CutAfter { bytes: 10 }),
            ("delay=1500", Action::Delay { ms: 1500 }),
        ];
        for (text, action) in cases {
            assert_eq!(text.parse(), Ok(action));
        }
        for wrong in ["status=200", "status", "explode", "throttle=0", "delay=700000"] {
            assert!(Action::from_str(wrong).is_err(), "{wrong}");
        }
        for (endpoint, name) in ENDPOINTS {
            assert_eq!(name.parse(), Ok(endpoint));
            assert_eq!(serde_json::to_value(endpoint).expect("json"), name);
        }
    }
}
