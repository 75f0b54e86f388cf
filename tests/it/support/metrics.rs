//! Parses a scrape like Prometheus.

use std::collections::{BTreeMap, BTreeSet};

use super::{Shop, eventually};

/// One sample: its labels and its value.
type Sample = (BTreeMap<String, String>, f64);

/// All samples of a scrape, by name.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    by_name: BTreeMap<String, Vec<Sample>>,
    /// Type and help of each family, by its name in the exposition.
    families: BTreeMap<String, (String, String)>,
    pub(crate) text: String,
}

impl Samples {
    /// Parses `OpenMetrics` text.
    pub(crate) fn parse(text: &str) -> Self {
        let mut samples = Self { text: text.to_owned(), ..Self::default() };
        assert!(text.ends_with("# EOF\n"), "{text}");
        for line in text.lines().filter(|line| *line != "# EOF") {
            if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
                help.clone_into(&mut samples.families.entry(name.to_owned()).or_default().1);
            } else if let Some((name, of)) =
                line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
            {
                of.clone_into(&mut samples.families.entry(name.to_owned()).or_default().0);
            } else {
                let (key, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
                let (name, labels) = key.split_once('{').unwrap_or((key, "}"));
                let labels = labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty());
                let labels = labels.map(|label| {
                    let (name, value) = label.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
                    (name.to_owned(), value.trim_end_matches('"').to_owned())
                });
                let sample = (labels.collect(), value.parse().unwrap());
                samples.by_name.entry(name.to_owned()).or_default().push(sample);
            }
        }
        samples
    }

    /// The sum of the samples that have these labels, or `None` without such samples.
    pub(crate) fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let is_wanted = |of: &BTreeMap<String, String>| {
            labels.iter().all(|(name, value)| of.get(*name).is_some_and(|there| there == value))
        };
        let found = self.by_name.get(name).into_iter().flatten().filter(|(of, _)| is_wanted(of));
        let found: Vec<f64> = found.map(|(_, value)| *value).collect();
        (!found.is_empty()).then(|| found.iter().sum())
    }

    /// The number of samples.
    pub(crate) fn count(&self) -> usize {
        self.by_name.values().map(Vec::len).sum()
    }

    /// Each family by its name in `PromQL`, with its type, its labels and its help.
    pub(crate) fn families(&self) -> BTreeMap<String, (String, BTreeSet<String>, String)> {
        let families = self.families.iter().map(|(name, (of, help))| {
            let shown = match of.as_str() {
                "counter" => format!("{name}_total"),
                "info" => format!("{name}_info"),
                _ => name.clone(),
            };
            let key = if of == "histogram" { format!("{name}_count") } else { shown.clone() };
            let samples = self.by_name.get(&key).into_iter().flatten();
            let labels = samples.flat_map(|(labels, _)| labels.keys().cloned()).collect();
            (shown, (of.clone(), labels, help.clone()))
        });
        families.collect()
    }
}

impl Shop {
    /// A scrape of the service.
    pub(crate) async fn scrape(&self) -> Samples {
        let answer = self.call("GET", "/metrics").send().await.expect(200);
        let media_type = answer.header("content-type").unwrap();
        assert_eq!(media_type, "application/openmetrics-text; version=1.0.0; charset=utf-8");
        Samples::parse(&answer.text)
    }

    /// Waits until a sample meets a condition.
    pub(crate) async fn shows(&self, name: &str, labels: &[(&str, &str)], wanted: impl Fn(f64) -> bool) {
        eventually(&format!("{name} {labels:?}"), async || {
            self.scrape().await.get(name, labels).is_some_and(&wanted)
        })
        .await;
    }

    /// The value of a sample, which must exist.
    pub(crate) async fn sample(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let samples = self.scrape().await;
        samples.get(name, labels).unwrap_or_else(|| panic!("no {name} {labels:?} in {}", samples.text))
    }
}
