"""Rules and dashboards speak of metrics that a gateway really exposes; promtool reads them."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from shutil import which

import pytest
import yaml

from cluster import control_pb2 as pb
from cluster.config import Config
from cluster.metrics import Metrics
from k8s.objects.dashboards import expressions
from k8s.objects.monitoring import alerts, prometheus_rule

NAME = re.compile(r"\b(?:tandem_|vllm:)[a-z0-9_]+")
needs_promtool = pytest.mark.skipif(which("promtool") is None, reason="needs promtool on the PATH")


def exposed() -> set[str]:
    """The names of all series of a gateway's /metrics, whether they have values yet or not."""
    text = Metrics("model", pb.ClusterStatus).text().decode()
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        suffixes = ("_bucket", "_count", "_sum") if kind == "histogram" else ("",)
        names |= {name + suffix for suffix in suffixes}
    return names


def rules_file(folder: Path) -> Path:
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump(prometheus_rule(Config())["spec"]))
    return path


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("expression", [*(each["expr"] for each in alerts("tandem")), *expressions()])
def test_an_expression_speaks_of_exposed_metrics_only(expression: str) -> None:
    assert set(NAME.findall(expression)) - exposed() == set()


def test_the_check_finds_an_unknown_metric() -> None:
    assert set(NAME.findall("rate(tandem_leases_total[5m])")) - exposed()


def unplaced(expressions: list[str], place: str) -> list[str]:
    """The expressions in which a metric is not narrowed to the place first."""
    return [
        text
        for text in expressions
        if any(not text[found.end() :].startswith(f"{{{place}") for found in NAME.finditer(text))
    ]


def test_alerts_speak_of_their_own_namespace_and_say_so() -> None:
    found = alerts("mine")
    assert unplaced([each["expr"] for each in found], 'namespace="mine"') == []
    assert {each["labels"]["namespace"] for each in found} == {"mine"}


def test_dashboards_speak_of_the_namespaces_that_are_chosen() -> None:
    assert unplaced(expressions(), 'namespace=~"$namespace"') == []


def test_the_check_finds_a_metric_of_anywhere() -> None:
    assert len(unplaced(['sum(tandem_a{namespace="mine"}) / sum(tandem_b)'], 'namespace="mine"')) == 1


def test_every_alert_says_what_it_means() -> None:
    assert all(each["annotations"]["summary"] and each["labels"]["severity"] for each in alerts("tandem"))


@needs_promtool
def test_promtool_accepts_the_rules(tmp_path: Path) -> None:
    done = promtool("check", "rules", str(rules_file(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert f"{len(alerts('tandem'))} rules found" in done.stdout


@needs_promtool
def test_promtool_parses_every_expression_of_the_dashboards(tmp_path: Path) -> None:
    texts = [text.replace("$__rate_interval", "1m").replace("$", "x") for text in expressions()]
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(texts)]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = promtool("check", "rules", "--lint=none", str(path))
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Story:
    """Series under which an alert fires, with the labels and the summary that it then has."""

    series: dict[str, str]
    labels: dict[str, str]
    summary: str
    well: str = "0.5x60"
    """The values of the same series when all is well."""

    def inputs(self, namespace: str, *, bad: bool) -> list[dict[str, str]]:
        """The series as promtool takes them, each of a pod in the namespace."""
        found = []
        for series, values in self.series.items():
            name, _, labels = series.removesuffix("}").partition("{")
            placed = ",".join(filter(None, (f'namespace="{namespace}"', labels)))
            found.append({"series": f"{name}{{{placed}}}", "values": values if bad else self.well})
        return found


ABSENCE = "TandemAbsent"
FIRING = {
    ABSENCE: Story(
        {'tandem_pool_replicas{pool="decode",state="ready"}': "1x10 _x50"},
        {},
        "No gateway in the namespace tandem tells of its pools: all are gone, or none is scraped.",
    ),
    "TandemNoReadyInstance": Story(
        {
            'tandem_pool_replicas{pool="decode",state="ready"}': "0x60",
            'tandem_pool_target_replicas{pool="decode"}': "2x60",
        },
        {"pool": "decode"},
        "The pool decode has no ready instance: requests wait or are refused.",
    ),
    "TandemPoolNotAtTarget": Story(
        {
            'tandem_pool_replicas{pool="decode",state="ready"}': "1x60",
            'tandem_pool_target_replicas{pool="decode"}': "3x60",
        },
        {"pool": "decode"},
        "The pool decode has 1 ready instances, which is not its target.",
    ),
    "TandemSlowFirstToken": Story(
        {'tandem_ttft_seconds_bucket{le="2.5"}': "0+1x60", "tandem_ttft_seconds_count": "0+10x60"},
        {},
        "Only 10% of requests get their first token within 2.5 s.",
    ),
    "TandemErrors": Story(
        {'tandem_requests_total{code="200"}': "0+90x60", 'tandem_requests_total{code="503"}': "0+10x60"},
        {},
        "10% of requests fail.",
    ),
    "TandemRejections": Story(
        {'tandem_rejections_total{reason="overloaded"}': "0+60x60"},
        {"reason": "overloaded"},
        "1 requests a second are turned away: overloaded.",
    ),
    "TandemTransferFailures": Story(
        {'tandem_kv_transfer_failures_total{instance="prefill-0"}': "0+60x60"},
        {"instance": "prefill-0"},
        "Handoffs from prefill-0 fail and are decoded where they were prefilled.",
    ),
    "TandemLeasesExpire": Story(
        {'tandem_lease_expirations_total{instance="decode-1"}': "0x30 1x29"},
        {"instance": "decode-1"},
        "Movements to decode-1 fall silent: look at its links and at who sends to it.",
    ),
    "TandemKVNearlyFull": Story(
        {'vllm:kv_cache_usage_perc{engine="decode-0"}': "0.99x60"},
        {"engine": "decode-0"},
        "The KV cache of decode-0 is 99% full.",
    ),
    "TandemObjectivesMissed": Story(
        {"tandem_goodput_ratio": "0.5x60"},
        {},
        "Only 50% of requests meet both objectives.",
        well="0.95x60",
    ),
    "TandemMigrationsAbort": Story(
        {'tandem_migrations_total{reason="drain",outcome="aborted"}': "0+60x60"},
        {"reason": "drain"},
        "Migrations keep being given up: drain.",
    ),
    "TandemResumes": Story(
        {'tandem_resumes_total{cause="instance_lost"}': "0+60x60"},
        {"cause": "instance_lost"},
        "Requests keep being resumed elsewhere: instance_lost.",
    ),
}


def test_every_alert_has_a_story_in_which_it_fires() -> None:
    assert set(FIRING) == {each["alert"] for each in alerts("tandem")}


@needs_promtool
@pytest.mark.parametrize(
    ("bad", "namespace"),
    [
        pytest.param(True, "tandem", id="bad"),
        pytest.param(False, "tandem", id="good"),
        pytest.param(True, "another", id="bad for another tandem"),
    ],
)
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path, bad: bool, namespace: str) -> None:
    rules_file(tmp_path)
    labels = {each["alert"]: each["labels"] for each in alerts("tandem")}
    tests = []
    for name, told in FIRING.items():
        fired = {
            "exp_labels": {**told.labels, **labels[name]},
            "exp_annotations": {"summary": told.summary},
        }
        # Where there is nothing but another tandem, this one is absent and nothing else.
        fires = bad and (namespace == "tandem" or name == ABSENCE)
        expected = [{"eval_time": "40m", "alertname": name, "exp_alerts": [fired] if fires else []}]
        inputs = told.inputs(namespace, bad=bad and (namespace == "tandem" or name != ABSENCE))
        tests.append({"interval": "1m", "input_series": inputs, "alert_rule_test": expected})
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests}))
    done = promtool("test", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_a_pool_that_is_to_have_no_instance_is_no_alert(tmp_path: Path) -> None:
    rules_file(tmp_path)
    of_it = '{namespace="tandem",pool="prefill"'
    inputs = [
        {"series": f'tandem_pool_replicas{of_it},state="ready"}}', "values": "0x60"},
        {"series": f"tandem_pool_target_replicas{of_it}}}", "values": "0x60"},
    ]
    quiet = [{"eval_time": "40m", "alertname": name, "exp_alerts": []} for name in FIRING]
    told = {"interval": "1m", "input_series": inputs, "alert_rule_test": quiet}
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [told]}))
    done = promtool("test", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
