"""Dashboards and rules that ship: of the form that Grafana and Prometheus read, and about what is really told."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from agent.endpoint.counters import Counters
from agent.endpoint.metrics import metrics as worker_page
from agent.link import LinkStatus
from agent.metrics.page import Facts, Process, page
from agent.sandbox.protocol import SourceSeen, Stats
from cloud_hub.metrics.exposition import Found, Told
from cloud_hub.metrics.meters import Meters
from cloud_hub.metrics.snapshot import Counts, Snapshot
from modules.messages import AttackReport, ModuleReport
from support.built import build_script
from support.devices import make_report

DASHBOARDS = ("device.json", "fleet.json", "model.json")
# Added by Prometheus to whatever it scrapes, or of histograms.
ALWAYS = {"instance", "job", "le"}
WORDS = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
SELECTOR = re.compile(r"\{([^}]*)\}")
GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left)\s*\(([^)]*)\)")
Labels = dict[str, set[str]]


def told(text: str) -> Labels:
    """Label names by the name of each series."""
    found: Labels = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def hub_page() -> str:
    """Everything that a hub may tell, each at least once."""
    meters = Meters()
    meters.answered("GET", "/api/v1/health", 200, 0.01)
    meters.committed("window", 1, 1, 10)
    meters.lagged(1.0)
    one: Counts = {("x",): 1.0}
    snapshot = Snapshot(
        devices=one, streams=one, rollouts=one, executions=one, alerts={("a", "b", "c", "d"): 1.0}, webhooks=one,
        deliveries=one, behind=one, module_rows={("a", "1", "p"): 1.0},
    )  # fmt: skip
    counted = Counter({"x": 1})
    found = Found(
        "1", snapshot, one, {("director", "root"): 1.0}, 1.0, 0.1, True, 1, counted, counted,
        Counter({("log", "taken"): 1}), counted, counted,
    )  # fmt: skip
    meters.registry.register(Told(found))
    return generate_latest(meters.registry).decode()


def agent_page() -> str:
    module = ModuleReport(
        "digits", 3, "ab" * 32, 1, "r-1", "serving", True, samples_dropped={"quota": 1}, beside={"fed": 1}
    )
    report = make_report("cam-17")
    report = type(report)(
        **{name: getattr(report, name) for name in report.__struct_fields__}
        | {"modules": (module,), "attacks": (AttackReport("k", "t", 1.0),), "dropped_why": {"window.age": 1}}
    )
    stats = {"digits": Stats(sources=(SourceSeen("mqtt", "open"),))}
    return page(Facts(report, LinkStatus(), 1, {"window": 1}, {"window": 1}, {"https": 1}, stats, Process()))


@pytest.fixture(scope="module")
def everything() -> Labels:
    counters = Counters()
    counters.answered(200)
    counters.sources = lambda: (SourceSeen("mqtt", "open"),)
    pages = (hub_page(), agent_page(), worker_page(build_script("").manifest, counters))
    found: Labels = {"up": set()}
    for text in pages:
        found |= {name: found.get(name, set()) | labels for name, labels in told(text).items()}
    return found


def expressions(repository: Path) -> Iterator[tuple[str, str]]:
    """Each with where it stands."""
    for name in DASHBOARDS:
        board = json.loads((repository / "deploy/grafana" / name).read_text())
        for panel in board["panels"]:
            yield from ((f"{name}: {panel['title']}", target["expr"]) for target in panel.get("targets", ()))
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                yield f"{name}: ${variable['name']}", variable["query"]["query"]
    rules = yaml.safe_load((repository / "deploy/prometheus/rules.yml").read_text())
    for group in rules["groups"]:
        yield from ((f"rules.yml: {rule['alert']}", rule["expr"]) for rule in group["rules"])


def names_in(expression: str) -> set[str]:
    bare = GROUPING.sub("", SELECTOR.sub("", re.sub(r'"[^"]*"', '""', expression)))
    return {word for word in WORDS.findall(bare) if word.startswith(("mooring_", "process_")) or word == "up"}


def labels_in(expression: str) -> set[str]:
    inside = {name for body in SELECTOR.findall(expression) for name in _matched(body)}
    grouped = {name.strip() for body in GROUPING.findall(expression) for name in body.split(",")}
    asked = re.fullmatch(r"label_values\(.*,\s*([a-z_]+)\)", expression)
    return {name for name in inside | grouped | ({asked[1]} if asked else set()) if name}


def _matched(body: str) -> list[str]:
    return re.findall(r'([a-z_]+)\s*(?:=~|!~|!=|=)\s*"[^"]*"', body)


def test_every_metric_and_label_of_dashboards_and_rules_is_told(repository: Path, everything: Labels) -> None:
    asked = list(expressions(repository))
    assert len(asked) > 60
    wrong = []
    for where, expression in asked:
        names = names_in(expression)
        wrong += [f"{where}: nobody tells {name}" for name in names - everything.keys()]
        known = ALWAYS.union(*(everything.get(name, set()) for name in names))
        wrong += [f"{where}: no label {label}" for label in labels_in(expression) - known]
        wrong += [f"{where}: no metric in it"] if not names else []
        wrong += [f"{where}: brackets"] if not _balanced(expression) else []
    assert wrong == []


def test_every_metric_of_the_page_about_metrics_is_told(repository: Path, everything: Labels) -> None:
    page = (repository / "docs/operate/metrics.md").read_text()
    names = set(re.findall(r"`((?:mooring|process)_[a-z_]+[a-z])`", page))
    assert len(names) > 50
    histograms = {name.removesuffix("_count") for name in everything if name.endswith("_count")}
    assert names - everything.keys() - histograms == set()


def test_a_name_that_nobody_tells_would_be_found(everything: Labels) -> None:
    expression = 'sum by (state, planet) (rate(mooring_hub_device{moon="x"}[5m]))'
    assert names_in(expression) - everything.keys() == {"mooring_hub_device"}
    assert labels_in(expression) == {"state", "planet", "moon"}


def _balanced(expression: str) -> bool:
    return all(expression.count(left) == expression.count(right) for left, right in ("()", "{}", "[]"))


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_has_the_form_that_grafana_imports(repository: Path, name: str) -> None:
    board: dict[str, Any] = json.loads((repository / "deploy/grafana" / name).read_text())
    assert board["uid"]
    assert board["schemaVersion"] >= 36
    assert board["templating"]["list"][0]["name"] == "datasource"
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert taken.isdisjoint(cells), panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["type"] in ("stat", "table", "timeseries")
            assert panel["datasource"]["uid"] == "${datasource}"
            letters = [target["refId"] for target in panel["targets"]]
            assert letters == sorted(set(letters))


def test_the_rules_say_what_to_do(repository: Path) -> None:
    rules = yaml.safe_load((repository / "deploy/prometheus/rules.yml").read_text())
    every = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in every}) == len(every)
    for rule in every:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        shown = re.findall(r"\$labels\.([a-z_]+)", " ".join(rule["annotations"].values()))
        grouped = GROUPING.findall(rule["expr"])
        if grouped:
            kept = {name.strip() for body in grouped for name in body.split(",")}
            assert set(shown) <= kept, rule["alert"]


def test_prometheus_scrapes_what_there_is(repository: Path) -> None:
    config = yaml.safe_load((repository / "deploy/prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert set(jobs) == {"mooring-hub", "mooring-agent", "mooring-worker"}
    assert config["rule_files"] == ["rules.yml"]
    assert jobs["mooring-hub"]["scheme"] == "https"
