//! A few lines that are rewritten in place on a terminal, below lines that stay; plain lines where there is no terminal.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Where the demo shows things.
#[derive(Debug)]
pub struct Screen {
    terminal: bool,
    began: Instant,
    block: Vec<String>,
    drawn: usize,
}

impl Default for Screen {
    fn default() -> Self {
        Self { terminal: std::io::stdout().is_terminal(), began: Instant::now(), block: Vec::new(), drawn: 0 }
    }
}

impl Screen {
    /// A line that stays, with the seconds since the start.
    pub fn say(&mut self, text: &str) {
        let now = self.began.elapsed();
        self.erase();
        for line in text.lines() {
            emit(&format!("{} {line}\n", stamp(now)));
        }
        self.draw();
    }

    /// Lines that replace the block. Without a terminal only those that were not in it before are printed.
    pub fn show(&mut self, block: Vec<String>) {
        if block == self.block {
            return;
        }
        if self.terminal {
            self.erase();
            self.block = block;
            self.draw();
        } else {
            let now = self.began.elapsed();
            for line in block.iter().filter(|line| !self.block.contains(line)) {
                emit(&format!("{} {line}\n", stamp(now)));
            }
            self.block = block;
        }
    }

    /// Leaves the block where it is and starts below it.
    pub fn finish(&mut self) {
        self.drawn = 0;
        self.block.clear();
    }

    fn erase(&mut self) {
        if self.terminal && self.drawn > 0 {
            emit(&format!("\x1b[{}A\x1b[J", self.drawn));
        }
        self.drawn = 0;
    }

    fn draw(&mut self) {
        if self.terminal {
            let width = columns();
            for line in &self.block {
                // A line that wraps would make the count of lines wrong.
                let cut: String = line.chars().take(width.saturating_sub(1)).collect();
                emit(&format!("{cut}\n"));
            }
            self.drawn = self.block.len();
        }
    }
}

fn stamp(at: Duration) -> String {
    format!("[{:6.1}]", at.as_secs_f32())
}

/// A reader that went away is no reason to fail.
fn emit(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Width of the terminal; the usual one where it cannot be known.
fn columns() -> usize {
    terminal_size::terminal_size_of(std::io::stdout()).map_or(110, |(width, _)| usize::from(width.0).max(20))
}
