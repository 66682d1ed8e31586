//! What PID 1 and its units say on the console, as data.

use std::time::Duration;

/// One line of PID 1's console: `[    1.234] who: text`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Since the kernel's start.
    pub at: Duration,
    /// `pid1`, a unit's name, or `unit NAME`.
    pub who: String,
    /// The rest.
    pub text: String,
}

impl Line {
    /// Reads one line; `None` for what is not PID 1's (firmware, kernel).
    pub fn parse(line: &str) -> Option<Self> {
        // The firmware may have left half a line in front.
        let line = &line[line.find('[')?..];
        let (stamp, rest) = line.strip_prefix('[')?.split_once("] ")?;
        let (seconds, millis) = stamp.trim().split_once('.')?;
        // The kernel's own stamps have six digits.
        if millis.len() != 3 {
            return None;
        }
        let at = Duration::from_secs(seconds.parse().ok()?) + Duration::from_millis(millis.parse().ok()?);
        let (who, text) = rest.split_once(": ").or_else(|| rest.split_once(':'))?;
        Some(Self { at, who: who.to_owned(), text: text.trim_end().to_owned() })
    }

    /// Name and detail of a boot stage of PID 1 (`verified`, `OS-A, 40 MiB in 300 ms`).
    pub fn stage(&self) -> Option<(&str, &str)> {
        const STAGES: [&str; 8] = ["mounted", "watchdog", "measured", "disk", "state", "site", "verified", "root"];
        let (name, detail) = self.text.split_once(": ").unwrap_or((&self.text, ""));
        (self.who == "pid1" && STAGES.contains(&name)).then_some((name, detail))
    }
}

/// All lines of PID 1 in what the console said.
pub fn lines(console: &str) -> Vec<Line> {
    console.lines().filter_map(Line::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_pid1_are_told_from_those_of_kernel_and_firmware() {
        let console = "BdsDxe: loading Boot0001\n[    0.512345] pci: kernel\n[    1.250] pid1: mounted\n\
                       [   12.001] pid1: verified: OS-A, 40 MiB in 300 ms\n[   13.000] node: config 1 accepted: 0 apps\n[x] y\n[";
        let lines = lines(console);
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0].stage(), Some(("mounted", "")));
        assert_eq!(lines[0].at, Duration::from_millis(1250));
        assert_eq!(lines[1].stage(), Some(("verified", "OS-A, 40 MiB in 300 ms")));
        assert_eq!((lines[2].who.as_str(), lines[2].stage()), ("node", None));
    }
}
