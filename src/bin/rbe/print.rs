//! What the commands print: numbers for people, JSON for programs, errors as one sentence.

use candle_rbe::Error;
use candle_rbe::archive::NonFinite;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;

/// Exactly one JSON object, and nothing else, on standard output.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    // Line ends are between values; whatever else could act on a terminal is inside of strings.
    let text = escape(&text, |c, out| {
        let mut units = [0; 2];
        for unit in c.encode_utf16(&mut units) {
            // Writing to a string cannot fail.
            let _ = write!(out, "\\u{unit:04x}");
        }
    });
    Ok(writeln!(io::stdout().lock(), "{text}")?)
}

/// One line, or several, on standard output.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout().lock(), "{}", escape(text, as_rust))?)
}

/// A line on standard error, where somebody may read it: when it is closed, as a terminal that was shut is, nobody does.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Says where a run that did not finish left what it had done.
pub(crate) fn kept(files: &[PathBuf]) {
    for file in files {
        note(&format!(
            "note: the layers that are done are kept in {}: the same command goes on from them; remove it if that is not wanted",
            harmless(&file.display().to_string())
        ));
    }
}

/// Says what runs of other settings left, which the output does not need.
pub(crate) fn kept_by_others(files: &[PathBuf]) {
    for file in files {
        note(&format!(
            "note: {} keeps layers of an interrupted run with other settings; remove it if that is not to go on",
            harmless(&file.display().to_string())
        ));
    }
}

/// A name or another text out of a file, on one line and without what could act on a terminal.
pub(crate) fn harmless(text: &str) -> String {
    escape(text, as_rust).replace('\n', "\\n")
}

/// Writes a character as `\u{1b}`.
fn as_rust(c: char, out: &mut String) {
    out.extend(c.escape_default());
}

/// The text with all that could act on a terminal, line ends apart, written by `write`: names in files are anybody's.
fn escape(text: &str, write: impl Fn(char, &mut String)) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push(c),
            // Marks that turn the direction of writing, and line ends that are no control characters.
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                write(c, &mut out);
            }
            c if c.is_control() => write(c, &mut out),
            c => out.push(c),
        }
    }
    out
}

/// What is no error and may be one, a line each on standard error.
pub(crate) fn warn_of(tensors: &[NonFinite]) {
    for found in tensors {
        warn(&found.name, &found.to_string());
    }
}

/// A line about a tensor on standard error.
pub(crate) fn warn(name: &str, what: &str) {
    note(&format!("warning: tensor {name:?} {what}"));
}

/// The error and its causes in one line on standard error.
pub(crate) fn error(error: &anyhow::Error) {
    // Who closed the pipe (`rbe inspect | head`) has seen enough and needs no message.
    let closed = |cause: &io::Error| cause.kind() == io::ErrorKind::BrokenPipe;
    if !error.root_cause().downcast_ref().is_some_and(closed) {
        // A backtrace, which Candle's errors carry where it is asked for, has lines of its own.
        let lines = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
        let text = sentence(error);
        note(&format!("error: {}", if lines { escape(&text, as_rust) } else { harmless(&text) }));
    }
}

fn sentence(error: &anyhow::Error) -> String {
    let mut sentence = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // The crate's own errors stand alone, so they have told their causes already.
        if !sentence.ends_with(&text) {
            sentence = if sentence.is_empty() { text } else { format!("{sentence}: {text}") };
        }
        if let Some(Error::Exists { .. }) = cause.downcast_ref() {
            sentence.push_str(" (--force)");
        }
    }
    sentence
}

/// The longest cell that makes a column wider; a longer one, such as a name of 65,536 letters, sticks out of its column.
const WIDEST: usize = 100;

/// Rows of cells in columns as wide as their longest cell; the first is set flush left, the others as asked.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    left: &'static [usize],
}

impl Table {
    /// A table whose columns `left`, counted from 0, are set flush left.
    pub(crate) fn new(left: &'static [usize]) -> Self {
        Self { rows: vec![], left }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [impl Into<String>; N]) {
        self.rows.push(cells.into_iter().map(|cell| harmless(&cell.into())).collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell: &String| cell.chars().count()).filter(|width| *width <= WIDEST).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        for (index, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let blank = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
                line += &match self.left.contains(&column) {
                    true => format!("{cell}{blank}  "),
                    false => format!("{blank}{cell}  "),
                };
            }
            f.write_str(if index == 0 { "" } else { "\n" })?;
            f.write_str(line.trim_end())?;
        }
        Ok(())
    }
}

/// Bytes in the largest decimal unit of which there is at least one.
pub(crate) fn bytes(count: u64) -> String {
    let (unit, name) = match count {
        1_000_000_000.. => (1e9, "GB"),
        1_000_000.. => (1e6, "MB"),
        1_000.. => (1e3, "kB"),
        _ => return format!("{count} B"),
    };
    format!("{:.2} {name}", count as f64 / unit)
}

/// A large number with a letter: k for thousands, M for millions, G for thousands of millions.
pub(crate) fn count(count: u64) -> String {
    let (unit, letter) = match count {
        1_000_000_000.. => (1e9, "G"),
        1_000_000.. => (1e6, "M"),
        1_000.. => (1e3, "k"),
        _ => return count.to_string(),
    };
    format!("{:.2} {letter}", count as f64 / unit)
}

/// A shape as `768 x 256`; of a scalar, nothing to multiply.
pub(crate) fn shape(shape: &[usize]) -> String {
    if shape.is_empty() {
        return "scalar".into();
    }
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let inner = Error::Codec(candle_rbe::CodecError::NonFinite { index: 3, value: f32::NAN })
            .in_tensor("a.weight");
        let error = anyhow::Error::from(inner).context("compressing m");
        assert_eq!(
            sentence(&error),
            "compressing m: tensor \"a.weight\": weight 3 is NaN; only finite weights can be compressed"
        );
    }

    #[test]
    fn tables_align() {
        let mut table = Table::new(&[0]);
        table.row(["name", "n"]);
        table.row(["a", "100"]);
        assert_eq!(table.to_string(), "name    n\na     100");
    }

    #[test]
    fn a_cell_of_any_length_is_set() {
        let mut table = Table::new(&[0]);
        let long = "n".repeat(1 << 17);
        table.row(["name", "n"]);
        table.row([&*long, "1"]);
        table.row(["a", "100"]);
        assert_eq!(table.to_string(), format!("name    n\n{long}    1\na     100"));
    }

    #[test]
    fn what_could_act_on_a_terminal_is_escaped() {
        let name = "a\u{1b}[2J\u{9b}\u{7f}\r\n\u{202e}b\u{e9}";
        assert_eq!(harmless(name), r"a\u{1b}[2J\u{9b}\u{7f}\r\n\u{202e}bé");
        let mut table = Table::new(&[0]);
        table.row([name]);
        assert_eq!(table.to_string(), harmless(name));
        let json = escape(&serde_json::to_string(name).unwrap(), |c, out| {
            let _ = write!(out, "\\u{:04x}", c as u32);
        });
        assert!(!json.chars().any(|c| c.is_control() || c == '\u{202e}'), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), name);
    }

    #[test]
    fn bytes_have_units() {
        assert_eq!([0, 999, 1000, 13_644_256].map(bytes), ["0 B", "999 B", "1.00 kB", "13.64 MB"]);
        assert_eq!([7, 1234, 2_500_000].map(count), ["7", "1.23 k", "2.50 M"]);
    }
}
