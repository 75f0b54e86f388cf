//! Parses `PromQL` expressions: the series that they select, and the labels that they group by.

use std::collections::BTreeSet;

use serde_json::Value;

use super::prometheus::SHORTEST_RANGE;

/// The queries of the dashboard, with its variables filled in.
pub(super) fn dashboard() -> Vec<String> {
    let text = include_str!("../../../src/kit/grafana/order-service.json");
    let dashboard: Value = serde_json::from_str(text).unwrap();
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let queries = targets.chain(dashboard["annotations"]["list"].as_array().expect("annotations"));
    let fill = |query: &Value| {
        let query = query["expr"].as_str().expect("a query");
        query.replace("$__rate_interval", &format!("{SHORTEST_RANGE}s")).replace("$namespace", ".*")
    };
    queries.map(fill).collect()
}

/// The names in one expression.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Expression {
    /// The selectors, each as a separate query.
    pub(super) selectors: BTreeSet<String>,
    /// The labels of `by`, `on` and similar clauses.
    pub(super) labels: BTreeSet<String>,
}

/// Keywords in positions where a metric is possible.
const WORDS: [&str; 13] =
    ["and", "avg", "bool", "by", "count", "max", "min", "offset", "on", "or", "quantile", "sum", "unless"];

/// The length of the prefix whose characters satisfy `is`.
fn length(text: &str, is: impl Fn(char) -> bool) -> usize {
    text.find(|c| !is(c)).unwrap_or(text.len())
}

/// The length of a text in quotes or brackets, including the delimiters.
fn enclosed(text: &str, end: char) -> usize {
    let mut quoted = end == '"';
    for (place, c) in text.char_indices().skip(1) {
        if c == end && (!quoted || end == '"') {
            return place + 1;
        }
        quoted ^= c == '"';
    }
    panic!("{text} has no end");
}

impl Expression {
    pub(super) fn parse(text: &str) -> Self {
        let (mut found, mut rest) = (Self::default(), text);
        while let Some(first) = rest.chars().next() {
            let taken = match first {
                '"' => enclosed(rest, '"'),
                '[' => enclosed(rest, ']'),
                '0'..='9' => length(rest, |c| c.is_ascii_alphanumeric() || c == '.'),
                c if c.is_ascii_alphabetic() || c == '_' => found.take_name(rest),
                c => c.len_utf8(),
            };
            rest = &rest[taken..];
        }
        found
    }

    /// Records the name at the start of `text`; returns its length with selector and arguments.
    fn take_name(&mut self, text: &str) -> usize {
        let name = length(text, |c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
        let space = length(&text[name..], char::is_whitespace);
        match (&text[..name], text[name + space..].chars().next()) {
            (_, Some('{')) => {
                let end = name + space + enclosed(&text[name + space..], '}');
                self.selectors.insert(text[..end].to_owned());
                end
            }
            ("by" | "on" | "ignoring" | "without" | "group_left" | "group_right", Some('(')) => {
                let end = name + space + enclosed(&text[name + space..], ')');
                let labels = text[name + space + 1..end - 1].split(',');
                self.labels.extend(labels.map(|label| label.trim().to_owned()));
                end
            }
            (word, next) => {
                if next != Some('(') && !WORDS.contains(&word) {
                    self.selectors.insert(word.to_owned());
                }
                name
            }
        }
    }

    /// A query for each grouping label, which selects the series that have the label.
    pub(super) fn with_labels(&self) -> Vec<String> {
        let having = |label: &String| {
            let of = |selector: &String| match selector.strip_suffix('}') {
                Some(open) => format!("{open},{label}!=\"\"}}"),
                None => format!("{selector}{{{label}!=\"\"}}"),
            };
            self.selectors.iter().map(of).collect::<Vec<_>>().join(" or ")
        };
        self.labels.iter().map(having).collect()
    }
}

#[test]
fn an_expression_is_split_into_selectors_and_labels() {
    let text = r#"histogram_quantile(0.99, sum by (le, kind) (rate(a_bucket{b="}(x)",c=~"5.."}[5m]))) / job:d:rate1h > 14.4 * 1e3
        and on (e) max(f) or absent(g{h="i"}) == 0"#;

    let found = Expression::parse(text);

    let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(found.selectors, of(&[r#"a_bucket{b="}(x)",c=~"5.."}"#, "job:d:rate1h", "f", r#"g{h="i"}"#]));
    assert_eq!(found.labels, of(&["le", "kind", "e"]));
    let one = Expression::parse(r#"sum by (a) (b{c="d"}) / f"#);
    assert_eq!(one.with_labels(), [r#"b{c="d",a!=""} or f{a!=""}"#]);
}
