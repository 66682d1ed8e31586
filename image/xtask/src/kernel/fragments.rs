//! Configuration fragments: what they ask for, and whether a final configuration still has it.
//!
//! A fragment is a list of `CONFIG_NAME=value` and `# CONFIG_NAME is not set` lines; every other line that begins with `#` is a
//! comment (`Documentation/kbuild/kconfig.rst` of the kernel). Kconfig silently drops a request whose dependencies are not met or whose
//! name it does not know: [`Requests::violations`] is what makes that loud.

use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::fmt;

/// Options asked for by a list of fragments.
#[derive(Debug, Clone, Default)]
pub struct Requests {
    /// Option name to its value (`n` for "is not set") and the fragment that asks.
    options: BTreeMap<String, (String, String)>,
}

/// An option that the final configuration does not have as requested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// `CONFIG_NAME`.
    pub option: String,
    /// Fragment that asks for it.
    pub fragment: String,
    /// Value asked for.
    pub requested: String,
    /// Value found; `None` when the option does not appear at all.
    pub found: Option<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={} (kernel-config/{}): ", self.option, self.requested, self.fragment)?;
        match &self.found {
            Some(value) => write!(f, "the configuration has {value}; another option forces it"),
            None => write!(f, "absent; the name is unknown, has no prompt, or something it depends on is off"),
        }
    }
}

impl Requests {
    /// Adds the requests of one fragment.
    ///
    /// # Errors
    /// A line that is no request and no comment, or a value that contradicts an earlier one.
    pub fn add(&mut self, fragment: &str, text: &str) -> Result<()> {
        for (number, line) in text.lines().enumerate() {
            let Some((option, value)) = parse(line) else {
                if line.trim().is_empty() || line.starts_with('#') {
                    continue;
                }
                bail!("kernel-config/{fragment}:{}: neither an option nor a comment: {line:?}", number + 1);
            };
            if let Some((earlier, by)) = self.options.get(option)
                && earlier != value
            {
                bail!(
                    "kernel-config/{fragment}:{}: {option}={value}, but kernel-config/{by} asks for {earlier}",
                    number + 1
                );
            }
            self.options.insert(option.to_owned(), (value.to_owned(), fragment.to_owned()));
        }
        Ok(())
    }

    /// Value asked for `option`, `n` for "is not set".
    pub fn value(&self, option: &str) -> Option<&str> {
        self.options.get(option).map(|(value, _)| value.as_str())
    }

    /// All requests as one file for `KCONFIG_ALLCONFIG`, sorted: comments and order do not change the cache key.
    pub fn text(&self) -> String {
        let line = |(option, (value, _)): (&String, &(String, String))| match value.as_str() {
            "n" => format!("# {option} is not set\n"),
            value => format!("{option}={value}\n"),
        };
        self.options.iter().map(line).collect()
    }

    /// Requests that `config` (a final `.config`) does not fulfil. An absent option counts as not set.
    pub fn violations(&self, config: &str) -> Vec<Violation> {
        let found: BTreeMap<&str, &str> = config.lines().filter_map(parse).collect();
        let violation = |(option, (requested, fragment)): (&String, &(String, String))| {
            let value = found.get(option.as_str()).copied();
            (value.unwrap_or("n") != requested).then(|| Violation {
                option: option.clone(),
                fragment: fragment.clone(),
                requested: requested.clone(),
                found: value.map(str::to_owned),
            })
        };
        self.options.iter().filter_map(violation).collect()
    }
}

/// `CONFIG_NAME=value` or `# CONFIG_NAME is not set`.
fn parse(line: &str) -> Option<(&str, &str)> {
    let pair = match line.strip_prefix("# ") {
        Some(comment) => (comment.strip_suffix(" is not set")?, "n"),
        None => line.trim_end().split_once('=')?,
    };
    let named = pair
        .0
        .strip_prefix("CONFIG_")
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
    named.then_some(pair)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(text: &str) -> Requests {
        let mut r = Requests::default();
        r.add("a.config", text).unwrap();
        r
    }

    #[test]
    fn lines_are_requests_or_comments() {
        let cases = [
            ("CONFIG_A=y", Some(("CONFIG_A", "y"))),
            ("CONFIG_S=\"a=b\"", Some(("CONFIG_S", "\"a=b\""))),
            ("# CONFIG_A is not set", Some(("CONFIG_A", "n"))),
            ("# CONFIG_A is needed for B", None),
            ("# why", None),
            ("", None),
            ("A=y", None),
            ("CONFIG_=y", None),
        ];
        for (line, expected) in cases {
            assert_eq!(parse(line), expected, "{line:?}");
        }
    }

    #[test]
    fn a_fulfilled_request_is_no_violation() {
        let r = requests("CONFIG_A=y\n# CONFIG_B is not set\n# CONFIG_C is not set\nCONFIG_N=5\n");
        assert_eq!(r.violations("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_N=5\nCONFIG_OTHER=y\n"), []);
    }

    #[test]
    fn dropped_changed_and_forced_options_are_named_with_their_fragment() {
        let r = requests("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_N=5\nCONFIG_KEPT=y\n");
        let found = r.violations("CONFIG_B=y\nCONFIG_N=6\nCONFIG_KEPT=y\n");
        let list: Vec<_> = found.iter().map(|v| (v.option.as_str(), v.found.as_deref())).collect();
        assert_eq!(list, [("CONFIG_A", None), ("CONFIG_B", Some("y")), ("CONFIG_N", Some("6"))]);
        assert!(found.iter().all(|v| v.to_string().contains("kernel-config/a.config")));
    }

    #[test]
    fn fragments_that_contradict_each_other_are_refused() {
        let mut r = requests("CONFIG_A=y\n");
        let error = r.add("b.config", "# CONFIG_A is not set\n").unwrap_err().to_string();
        assert!(error.contains("a.config") && error.contains("b.config:1"), "{error}");
    }

    #[test]
    fn a_misspelt_line_is_refused() {
        assert!(Requests::default().add("a.config", "CONFIG_A = y\n").is_err());
        assert!(Requests::default().add("a.config", "CONFG_A=y\n").is_err());
    }

    #[test]
    fn comments_and_order_do_not_change_the_text() {
        assert_eq!(requests("# why\nCONFIG_B=y\nCONFIG_A=y\n").text(), requests("CONFIG_A=y\n\nCONFIG_B=y\n").text());
    }
}
