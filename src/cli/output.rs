//! The output of the operators' commands: a table or JSON.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::Failure;

/// The format of the output.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Output {
    /// Print JSON instead of a table
    #[arg(long, global = true)]
    json: bool,
}

// A command of operators. Not a doc comment: clap would show it.
#[derive(Args)]
pub(super) struct Operated<C: Subcommand> {
    #[command(subcommand)]
    pub(super) command: C,
    #[command(flatten)]
    pub(super) output: Output,
}

/// A column of a table: its heading, and the cell of a row.
pub(super) type Column<'a> = (&'a str, &'a dyn Fn(&Value) -> String);

impl Output {
    /// Prints rows as a table or as a JSON array. Without rows, prints `none` instead of the table.
    pub(super) fn rows(self, rows: &[Value], columns: &[Column<'_>], none: &str) -> Result<(), Failure> {
        if self.json {
            return print(&serde_json::to_string(rows)?);
        }
        if rows.is_empty() {
            return print(none);
        }
        let headings = columns.iter().map(|(heading, _)| (*heading).to_owned()).collect();
        let cells = rows.iter().map(|row| columns.iter().map(|(_, cell)| visible(&cell(row))).collect());
        print(&table(&std::iter::once(headings).chain(cells).collect::<Vec<Vec<String>>>()))
    }

    /// Prints a result as a sentence or as a JSON object.
    pub(super) fn result(self, value: &Value, sentence: &str) -> Result<(), Failure> {
        let lines: Vec<String> = sentence.lines().map(visible).collect();
        print(&if self.json { value.to_string() } else { lines.join("\n") })
    }

    /// Whether the output is JSON.
    pub(super) const fn is_json(self) -> bool {
        self.json
    }
}

/// The cell of a JSON row: the member with this name, or `-`.
pub(super) fn text(name: &'static str) -> impl Fn(&Value) -> String {
    move |row| match &row[name] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A progress bar on standard error, shown only on a terminal.
pub(super) fn progress_bar(total: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(total.max(1));
    let style = ProgressStyle::with_template(template);
    style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style))
}

/// Prints a line on standard output.
pub(super) fn print(line: &str) -> Result<(), Failure> {
    Ok(writeln!(io::stdout(), "{line}")?)
}

/// Replaces control characters, so that text of another service cannot control the terminal.
fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Aligns the cells in columns, two spaces apart.
fn table(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let lines = lines.iter().map(|line| {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Parses the name of an operator.
pub(super) fn actor(text: &str) -> Result<String, &'static str> {
    bounded(text, 254).ok_or("must be 1 to 254 visible characters, such as your name")
}

/// Parses a note for the record.
pub(super) fn note(text: &str) -> Result<String, &'static str> {
    bounded(text, 1_000).ok_or("must be 1 to 1,000 visible characters")
}

fn bounded(text: &str, most: usize) -> Option<String> {
    let text = text.trim();
    let fits = !text.is_empty() && text.chars().count() <= most && !text.chars().any(char::is_control);
    fits.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_of_a_table_are_aligned() {
        let cells = [["ORDER", "WHY"], ["a", "too large"], ["longer than that", ""]];
        let lines: Vec<Vec<String>> = cells.iter().map(|line| line.map(str::to_owned).to_vec()).collect();
        assert_eq!(table(&lines), "ORDER             WHY\na                 too large\nlonger than that");
    }

    #[test]
    fn an_actor_is_named_and_short() {
        assert_eq!(actor(" ada "), Ok("ada".to_owned()));
        for bad in ["", " ", "a\nb", &"a".repeat(255)] {
            assert!(actor(bad).is_err(), "{bad:?}");
        }
    }
}
