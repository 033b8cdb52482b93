"""Metrics as independent parsers read them."""

import subprocess

from prometheus_client import parser as classic_parser
from prometheus_client.openmetrics import parser

from sniproxy.dataplane.counts import FAULTS
from sniproxy.status.metrics import metrics
from tests.programs import need
from tests.seen import Shown, whole


def samples(text: str, reader: object = parser) -> dict[tuple[str, tuple[str, ...]], float]:
    families = list(reader.text_string_to_metric_families(text))  # type: ignore[attr-defined]
    assert all(family.documentation for family in families)
    assert len({family.name for family in families}) == len(families)
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


ASKED_FOR = {
    "sniproxy_build": ("info", ""),
    "process_start_time_seconds": ("gauge", "seconds"),
    "sniproxy_connections_accepted": ("counter", ""),
    "sniproxy_connections_adopted": ("counter", ""),
    "sniproxy_connections_refused": ("counter", ""),
    "sniproxy_open_connections": ("gauge", ""),
    "sniproxy_received_bytes": ("counter", "bytes"),
    "sniproxy_sent_bytes": ("counter", "bytes"),
    "sniproxy_hello_seconds": ("histogram", "seconds"),
    "sniproxy_backend_seconds": ("histogram", "seconds"),
    "sniproxy_workers": ("gauge", ""),
    "sniproxy_worker_restarts": ("counter", ""),
    "sniproxy_worker_open_connections": ("gauge", ""),
    "sniproxy_descriptors": ("gauge", ""),
    "sniproxy_descriptors_max": ("gauge", ""),
    "sniproxy_log_lines_dropped": ("counter", ""),
    "sniproxy_host_open_connections": ("gauge", ""),
    "sniproxy_host_connections": ("counter", ""),
    "sniproxy_host_received_bytes": ("counter", "bytes"),
    "sniproxy_host_sent_bytes": ("counter", "bytes"),
    "sniproxy_host_backend_faults": ("counter", ""),
}
"""Names are others' from the first release on: who changes one breaks dashboards."""


def test_all_are_there_by_name_kind_and_unit() -> None:
    text = whole(metrics(Shown(), classic=False)).decode()
    families = parser.text_string_to_metric_families(text)
    assert {one.name: (one.type, one.unit) for one in families} == ASKED_FOR


def test_they_are_open_metrics() -> None:
    found = samples(whole(metrics(Shown(), classic=False)).decode())
    assert found["sniproxy_connections_accepted_total", ()] == 30
    assert found["sniproxy_connections_accepted_created", ()] == 1000.5
    assert found["sniproxy_connections_refused_total", ("no_such_host",)] == 6
    assert found["sniproxy_host_connections_total", ("a.example",)] == 12
    assert found["sniproxy_host_backend_faults_total", ("2.example",)] == 1
    assert found["sniproxy_received_bytes_total", ()] == 300
    assert found["sniproxy_log_lines_dropped_total", ()] == 5
    assert found["sniproxy_build_info", ("1.2.3", "plain")] == 1
    assert found["sniproxy_hello_seconds_bucket", ("0.1",)] == 11
    assert found["sniproxy_hello_seconds_bucket", ("0.25",)] == 12
    assert found["sniproxy_hello_seconds_count", ()] == 12
    assert found["sniproxy_hello_seconds_sum", ()] == 0.2


def test_the_classic_form_says_the_same() -> None:
    text = whole(metrics(Shown(), classic=True)).decode()
    assert "# EOF" not in text
    modern = samples(whole(metrics(Shown(), classic=False)).decode())
    without = {key: value for key, value in modern.items() if not key[0].endswith("_created")}
    assert samples(text, classic_parser) == without


def test_hostile_names_are_values_of_a_label() -> None:
    """No client can have such a name counted: no bug that lets one may become a hole here."""
    proxy = Shown()
    names = ('a"}1', "b\\", 'c\\"', "d\\n", "{}#,=", "<script>", "\x1b[2J\x00\x7f")
    for name in names:
        proxy.parts[0].host(name, "")[FAULTS] = 3
    for classic, reader in ((False, parser), (True, classic_parser)):
        found = samples(whole(metrics(proxy, classic=classic)).decode(), reader)
        assert [found["sniproxy_host_backend_faults_total", (name,)] for name in names] == [3] * 7
        assert len([key for key in found if key[0] == "sniproxy_host_sent_bytes_total"]) == 4 + 7


def test_promtool_finds_nothing_to_say_about_names_and_units() -> None:
    command = [need("promtool", "prometheus"), "check", "metrics"]
    text = whole(metrics(Shown(), classic=True))
    done = subprocess.run(command, input=text, check=False, capture_output=True, timeout=30)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
