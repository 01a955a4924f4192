//! What the commands print: numbers for people, JSON for programs, errors as one sentence.

use candle_rbe::Error;
use candle_rbe::archive::NonFinite;
use serde::Serialize;
use std::io::{self, Write};

/// Exactly one JSON object, and nothing else, on standard output.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(value)?)
}

/// One line, or several, on standard output.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout().lock(), "{text}")?)
}

/// What is no error and may be one, a line each on standard error.
pub(crate) fn warn_of(tensors: &[NonFinite]) {
    for found in tensors {
        eprintln!("warning: tensor {:?} {found}", found.name);
    }
}

/// The error and its causes in one line on standard error.
pub(crate) fn error(error: &anyhow::Error) {
    // Who closed the pipe (`rbe inspect | head`) has seen enough and needs no message.
    let closed = |cause: &io::Error| cause.kind() == io::ErrorKind::BrokenPipe;
    if !error.root_cause().downcast_ref().is_some_and(closed) {
        eprintln!("error: {}", sentence(error));
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
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell: &String| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        for (index, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                line += &match self.left.contains(&column) {
                    true => format!("{cell:<width$}  "),
                    false => format!("{cell:>width$}  "),
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
        let inner = Error::NonFinite { index: 3, value: f32::NAN }.in_tensor("a.weight");
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
    fn bytes_have_units() {
        assert_eq!([0, 999, 1000, 13_644_256].map(bytes), ["0 B", "999 B", "1.00 kB", "13.64 MB"]);
        assert_eq!([7, 1234, 2_500_000].map(count), ["7", "1.23 k", "2.50 M"]);
    }
}
