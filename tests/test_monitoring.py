"""What chroot/monitoring has for Prometheus and Grafana: it is what these accept, asks for nothing
that we don't tell, and each alert fires when it should and not before."""

import json
import pathlib
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from sniproxy.status.metrics import metrics
from tests.deployment.inside.manual import block
from tests.programs import need
from tests.seen import Shown, whole

ROOT = pathlib.Path(__file__).parents[1]
RULES = ROOT / "chroot" / "monitoring" / "sniproxy.rules.yml"
DASHBOARD = ROOT / "chroot" / "monitoring" / "sniproxy-dashboard.json"
STORIES = ROOT / "tests" / "alerts.yml"
TIMEOUT = 60


def told() -> dict[str, set[str]]:
    """Give what the status socket tells, and the labels of each, as Prometheus takes it in."""
    text = whole(metrics(Shown(), classic=True)).decode()
    samples = (one for family in text_string_to_metric_families(text) for one in family.samples)
    return {one.name: set(one.labels) for one in samples}


METRICS = told()

FROM_PROMETHEUS = {"job", "instance"}
"""Labels that every metric gets from who asks for it."""

WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "bool", "offset"}

VALUES = {"job": "sniproxy", "instance": "a:9799", "top": "10"}
INTERVALS = {"__rate_interval": "5m", "__range": "6h", "__interval": "1m"}
"""What Grafana puts in the place of variables: those of the dashboard, and its own."""


@pytest.fixture(scope="module")
def promtool() -> str:
    return need("promtool", "prometheus")


def accepted(*command: str | pathlib.Path) -> None:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=TIMEOUT, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


def alerts() -> list[dict[str, Any]]:
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def dashboard() -> dict[str, Any]:
    found = json.loads(DASHBOARD.read_text())
    assert isinstance(found, dict)
    return found


def panels() -> list[dict[str, Any]]:
    return [one for one in dashboard()["panels"] if one["type"] != "row"]


def questions() -> Iterator[tuple[str, str]]:
    """Give where each expression is, and what it says with the variables put in."""
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], filled_in(target["expr"])
    for annotation in dashboard()["annotations"]["list"]:
        if "expr" in annotation:
            yield annotation["name"], filled_in(annotation["expr"])


def filled_in(expression: str) -> str:
    known = VALUES | INTERVALS
    return re.sub(r"\$\{?(\w+)\}?", lambda found: known[found[1]], expression)


def test_prometheus_accepts_the_rules(promtool: str) -> None:
    accepted(promtool, "check", "rules", RULES)


def test_alerts_fire_when_they_should(promtool: str) -> None:
    accepted(promtool, "test", "rules", STORIES)


def test_each_alert_has_a_story() -> None:
    """In which it fires, and one moment in which it does not."""
    stories = [
        one
        for story in yaml.safe_load(STORIES.read_text())["tests"]
        for one in story["alert_rule_test"]
    ]
    for name in [rule["alert"] for rule in alerts()]:
        firing = {bool(one["exp_alerts"]) for one in stories if one["alertname"] == name}
        assert firing == {True, False}, name


def test_each_alert_says_what_is_wrong() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names) > 6
    for rule in alerts():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "description"}


def test_nothing_is_asked_for_that_we_do_not_tell() -> None:
    for where, expression in questions():
        named, labels = names_of(expression)
        assert named, where
        assert named <= METRICS.keys() | {"up"}, (where, named - METRICS.keys())
        known = FROM_PROMETHEUS.union(*(METRICS.get(name, set()) for name in named))
        assert labels <= known, (where, labels - known)


def names_of(expression: str) -> tuple[set[str], set[str]]:
    """Take an expression to pieces: the metrics that it names, and the labels."""
    labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", "".join(re.findall(r"\{.*?\}", expression))))
    for found in re.findall(r"\b(?:by|without|on|ignoring)\s*\((.*?)\)", expression):
        labels |= set(re.findall(r"\w+", found))
    rest = re.sub(r"\{.*?\}|\[.*?\]|\b(?:by|without|on|ignoring)\s*\(.*?\)", " ", expression)
    # A word before a parenthesis is a function.
    return set(re.findall(r"\b[a-zA-Z_]\w*\b(?!\s*\()", rest)) - WORDS, labels


def test_an_expression_is_taken_to_pieces() -> None:
    expression = 'sum by (a, b) (rate(x_total{c="d", e=~"f"}[5m])) > 2 and on (g) h / max(i)'
    assert names_of(expression) == ({"x_total", "h", "i"}, {"a", "b", "c", "e", "g"})


def test_prometheus_accepts_what_the_dashboard_asks(promtool: str, tmp_path: pathlib.Path) -> None:
    rules = [
        {"record": f"ask:{number}", "expr": expression}
        for number, (_, expression) in enumerate(questions())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    accepted(promtool, "check", "rules", file)


def test_everything_that_is_told_is_shown() -> None:
    """Other than sums and counts of histograms."""
    shown = set().union(*(names_of(expression)[0] for _, expression in questions()))
    assert METRICS.keys() - shown == {
        f"sniproxy_{times}_seconds_{part}"
        for times in ("hello", "backend")
        for part in ("sum", "count")
    }


def test_the_dashboard_is_well_formed() -> None:
    board = dashboard()
    assert board["schemaVersion"] >= 39
    # Grafana gives it a number of its own.
    assert "id" not in board
    identities = [one["id"] for one in board["panels"]]
    assert len(set(identities)) == len(identities) > 20
    taken: set[tuple[int, int]] = set()
    for one in board["panels"]:
        assert one["title"]
        place = one["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, one["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_the_data_source_is_the_one_that_is_chosen() -> None:
    board = dashboard()
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    variables = {one["name"]: one for one in board["templating"]["list"]}
    assert set(variables) == {"datasource", *VALUES}
    assert variables["datasource"]["type"] == "datasource"
    asking = [*panels(), *(target for panel in panels() for target in panel["targets"])]
    asking += [one for one in board["annotations"]["list"] if "expr" in one]
    asking += [one for one in variables.values() if one["type"] == "query"]
    assert len(asking) > 50
    for one in asking:
        assert one["datasource"] == chosen, one


def test_of_each_instance_only_the_chosen_are_shown() -> None:
    for panel in panels():
        for target in panel["targets"]:
            selectors = re.findall(r"(\w+_\w+)(\{.*?\})?(?=[\s\[)*/]|$)", target["expr"])
            told = [(name, chosen) for name, chosen in selectors if name in METRICS]
            assert told
            for name, chosen in told:
                assert chosen == '{job=~"$job", instance=~"$instance"}', (panel["title"], name)


def test_prometheus_accepts_the_configuration(promtool: str, tmp_path: pathlib.Path) -> None:
    text = block("how-to/monitoring.md", "Prometheus", 1)
    installed = "/usr/share/doc/sniproxy/examples/monitoring/sniproxy.rules.yml"
    assert yaml.safe_load(text)["rule_files"] == [installed]
    (job,) = yaml.safe_load(text)["scrape_configs"]
    # As the rules have it, and the drop-in.
    assert job["job_name"] == "sniproxy"
    (address,) = job["static_configs"][0]["targets"]
    drop_in = ROOT / "chroot" / "sniproxy-status.socket.d" / "tcp.conf"
    assert f"\nListenStream={address}\n" in drop_in.read_text()
    file = tmp_path / "prometheus.yml"
    file.write_text(text.replace(installed, str(RULES)))
    accepted(promtool, "check", "config", file)
