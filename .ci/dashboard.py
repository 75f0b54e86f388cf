"""Checks the dashboard and the runbooks of the kit, and prints each query of the dashboard as a recording rule, whose
syntax promtool can check: dashboard.py FOLDER"""

import json
import pathlib
import re
import sys

ROWS = ["Traffic", "Errors", "Latency", "Saturation", "Outbox", "Payments", "Stock", "Business"]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}

kit = pathlib.Path(sys.argv[1])
dashboard = json.loads((kit / "grafana/order-service.json").read_text())
panels = dashboard["panels"]

assert [panel["title"] for panel in panels if panel["type"] == "row"] == ROWS, "the rows"
ids = [panel["id"] for panel in panels]
assert len(ids) == len(set(ids)), "two panels have the same id"
taken = {}
queries = []
for panel in panels:
    title, place = panel["title"], panel["gridPos"]
    assert place["x"] + place["w"] <= 24, f"{title} is wider than the dashboard"
    for cell in ((x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])):
        assert cell not in taken, f"{title} overlaps {taken[cell]}"
        taken[cell] = title
    if panel["type"] == "row":
        continue
    assert panel["description"] and panel["fieldConfig"]["defaults"]["unit"], f"{title} has no description or no unit"
    assert panel["targets"] and panel["datasource"] == SOURCE, title
    for target in panel["targets"]:
        assert target["datasource"] == SOURCE and 'job="order-service"' in target["expr"], title
        queries.append(target["expr"])

print("groups: [{name: dashboard, rules: [")
for number, query in enumerate(queries):
    print(f"  {{record: 'query:{number}', expr: {json.dumps(query.replace('$__rate_interval', '1m'))}}},")
print("]}]")

rules = (kit / "prometheus/rules/order-service.yml").read_text()
tests = (kit / "prometheus/rules.test.yml").read_text()
alerts = re.findall(r"- alert: (\w+)", rules)
assert re.findall(r"runbook_url: (\S+)", rules) == [f"runbooks/{alert}.md" for alert in alerts], "runbook_url"
there = {path.stem for path in (kit / "runbooks").glob("*.md")} - {"README"}
assert there == set(alerts), f"runbooks without an alert, or alerts without a runbook: {there ^ set(alerts)}"
index = re.findall(r"^\| \[(\w+)\]\(\1\.md\) \| (\w+) \|", (kit / "runbooks/README.md").read_text(), re.M)
severities = re.findall(r"severity: (\w+)", rules)
assert index == list(zip(alerts, severities)), "runbooks/README.md lists other alerts or severities than the rules"
for alert in alerts:
    text = (kit / f"runbooks/{alert}.md").read_text()
    for part in (f"# {alert}\n", "## What it means\n", "## What to look at\n", "## What to do\n"):
        assert part in text, f"{alert}.md has no {part.strip()}"
    assert re.search(rf"alertname: {alert}\n\s+eval_time: \w+\n\s+exp_alerts:", tests), f"no unit test expects {alert} to fire"
    for link in re.findall(r"\]\((\w+\.md)\)", text):
        assert (kit / "runbooks" / link).exists(), f"{alert}.md: {link}"
print(f"{len(queries)} queries, {len(alerts)} alerts with their runbooks", file=sys.stderr)
