//! `monitoring/`, the runbooks and the pages name what exists: metrics, alarms, commands; and the copies of the rules are copies.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use flashsale::telemetry::metrics::{ALL, Kind, Metric, recorder};
use serde_json::Value;

use crate::support::watching::{RULES, files_in, read};

/// A metric's name as Prometheus knows it.
fn exported(metric: &Metric) -> String {
    let unit = if metric.unit == metrics::Unit::Seconds { "_seconds" } else { "" };
    let total = if matches!(metric.kind, Kind::Counter) { "_total" } else { "" };
    metric.name.replace('.', "_") + unit + total
}

/// Every series that the service can export.
fn series() -> BTreeSet<String> {
    let mut series = BTreeSet::new();
    for metric in ALL {
        let name = exported(metric);
        if matches!(metric.kind, Kind::Histogram(_)) {
            series.extend(["_bucket", "_sum", "_count"].map(|end| name.clone() + end));
        }
        series.insert(name);
    }
    series
}

#[test]
fn names_are_spelled_here_as_the_exporter_spells_them() {
    let recorder = recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        for metric in ALL {
            match metric.kind {
                Kind::Counter => {
                    metrics::describe_counter!(metric.name, metric.unit, metric.description);
                    metrics::counter!(metric.name).increment(1);
                }
                Kind::Gauge => {
                    metrics::describe_gauge!(metric.name, metric.unit, metric.description);
                    metrics::gauge!(metric.name).set(1.0);
                }
                Kind::Histogram(_) => {
                    metrics::describe_histogram!(metric.name, metric.unit, metric.description);
                    metrics::histogram!(metric.name).record(1.0);
                }
            }
        }
    });
    let text = handle.render();
    let spelled: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let expected: BTreeSet<String> = ALL.iter().map(exported).collect();
    assert_eq!(spelled, expected.iter().map(String::as_str).collect());
}

#[test]
fn the_page_of_metrics_is_the_table_of_the_code() {
    let page = read("docs/metrics.md");
    let lines: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
    let kind = |metric: &Metric| match metric.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram(_) => "histogram",
    };
    let row = |metric: &Metric| format!("| `{}` | {} | {} |", exported(metric), kind(metric), metric.description);
    let expected: Vec<String> = ALL.iter().map(row).collect();
    assert_eq!(lines, expected, "docs/metrics.md should have these rows:\n{}", expected.join("\n"));
}

/// Words that look like a metric of ours, or a series that the rules record.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    let words = words.map(|word| word.trim_end_matches(':'));
    words
        .filter(|word| ["flashsale_", "flashsale:", "http_server_"].iter().any(|start| word.starts_with(start)))
        .collect()
}

/// What follows `key` on a line of the rules.
fn values_of<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines()
        .filter_map(|line| line.trim_start().trim_start_matches("- ").strip_prefix(key))
        .map(str::trim)
        .collect()
}

#[test]
fn every_metric_that_is_named_anywhere_exists() {
    let rules = read(RULES);
    let mut known = series();
    known.extend(values_of(&rules, "record: ").into_iter().map(str::to_owned));
    let mut paths = ["README.md", RULES, "monitoring/prometheus/flashsale.rules.test.yaml"].map(str::to_owned).to_vec();
    for folder in ["docs", "docs/runbooks", "monitoring/grafana/dashboards"] {
        paths.extend(files_in(folder).into_iter().filter(|path| path.ends_with(".md") || path.ends_with(".json")));
    }
    let mut named = BTreeMap::new();
    for path in &paths {
        let text = read(path);
        let names: Vec<String> = metrics_in(&text).into_iter().map(str::to_owned).collect();
        named.extend(names.into_iter().map(|name| (name, path)));
    }
    assert!(named.len() > 40, "metrics were not found: {named:?}");
    let unknown: Vec<_> = named.iter().filter(|(name, _)| !known.contains(*name)).collect();
    assert!(unknown.is_empty(), "no such metric: {unknown:?}");
    let recorded = values_of(&rules, "record: ");
    let used: String = paths.iter().map(read).collect();
    for name in recorded {
        assert!(used.matches(name).count() > 1, "nobody reads {name}");
    }
}

/// `ConsumerLagHigh` becomes `consumer-lag-high`.
fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.extend(c.to_lowercase());
    }
    kebab
}

#[test]
fn every_alarm_has_its_runbook_and_every_runbook_its_alarm() {
    let rules = read(RULES);
    let (alarms, urls) = (values_of(&rules, "alert: "), values_of(&rules, "runbook_url: "));
    assert!(alarms.len() > 20 && alarms.len() == urls.len(), "{alarms:?} {urls:?}");
    for (alarm, url) in alarms.iter().zip(urls) {
        assert_eq!(url, format!("docs/runbooks/{}.md", kebab(alarm)));
    }
    let names: BTreeSet<&str> = alarms.into_iter().collect();
    let expected: Vec<String> = names.iter().map(|name| format!("docs/runbooks/{}.md", kebab(name))).collect();
    let mut sorted = expected.clone();
    sorted.sort();
    assert_eq!(files_in("docs/runbooks"), sorted);
    for (name, path) in names.iter().zip(&expected) {
        let page = read(path);
        let heads: Vec<&str> = page.lines().filter(|line| line.starts_with('#')).collect();
        assert_eq!(heads, [&format!("# {name}"), "## Symptom", "## Look here", "## Do this"], "{path}");
    }
}

#[test]
fn every_alarm_is_tested_firing_and_not_firing() {
    let tests = read("monitoring/prometheus/flashsale.rules.test.yaml");
    for alarm in values_of(&read(RULES), "alert: ") {
        assert!(tests.contains(&format!("alertname: {alarm}, exp_alerts: []")), "{alarm} is never silent");
        assert!(tests.contains(&format!("alertname: {alarm}\n        exp_alerts:")), "{alarm} never fires");
    }
}

#[test]
fn routes_know_the_alarms() {
    let (rules, routes) = (read(RULES), read("monitoring/alertmanager/alertmanager.yml"));
    let alarms: BTreeSet<&str> = values_of(&rules, "alert: ").into_iter().collect();
    let quoted = routes.split("alertname=").skip(1).map(|rest| rest.split('"').nth(1).expect("a quoted name"));
    let named: Vec<&str> = quoted.flat_map(|names| names.split('|')).collect();
    assert!(named.len() > 3, "{named:?}");
    for name in named {
        assert!(alarms.contains(name), "no alarm is called {name}");
    }
}

#[test]
fn the_operators_copy_of_the_rules_is_a_copy() {
    let rules = read(RULES);
    let groups = &rules[rules.find("\ngroups:").expect("groups") + 1..];
    let indented = |line: &str| if line.is_empty() { String::new() } else { format!("  {line}") };
    let expected: Vec<String> = groups.lines().map(indented).collect();
    let copy = read("k8s/components/monitoring/rules.yaml");
    let (_, spec) = copy.split_once("\nspec:\n").expect("a spec");
    let spec: Vec<&str> = spec.lines().collect();
    assert!(spec == expected, "run scripts/monitoring.sh write");
}

#[test]
fn every_command_of_a_runbook_is_one() {
    let mut found = 0;
    for path in files_in("docs/runbooks") {
        for line in read(&path).lines().filter_map(|line| line.strip_prefix("flashsale ")) {
            let line = line.split(" #").next().unwrap_or_default();
            // A quoted text is one word.
            let words = line.split('"').enumerate().flat_map(|(at, part)| match at % 2 {
                0 => part.split_whitespace().collect(),
                _ => vec![part],
            });
            let asked = Command::new(env!("CARGO_BIN_EXE_flashsale")).args(words).arg("--help").env_clear().output();
            let asked = asked.expect("the program runs");
            assert!(asked.status.success(), "{path}: flashsale {line}: {}", String::from_utf8_lossy(&asked.stderr));
            found += 1;
        }
    }
    assert!(found > 20, "commands were not found: {found}");
}

#[test]
fn dashboards_can_be_loaded_side_by_side() {
    let mut uids = BTreeSet::new();
    for path in files_in("monitoring/grafana/dashboards") {
        let dashboard: Value = serde_json::from_str(&read(&path)).expect("JSON");
        assert!(uids.insert(dashboard["uid"].as_str().expect("an id").to_owned()), "{path}: its uid is taken");
        let panels = dashboard["panels"].as_array().expect("panels");
        let ids: BTreeSet<u64> = panels.iter().filter_map(|panel| panel["id"].as_u64()).collect();
        assert_eq!(ids.len(), panels.len(), "{path}: ids of panels are unique");
        for panel in panels {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{path}: {}", panel["title"]);
            assert!(panel["description"].as_str().is_some_and(|text| text.len() > 3), "{path}: {}", panel["title"]);
        }
    }
    assert_eq!(uids.len(), 4);
}
