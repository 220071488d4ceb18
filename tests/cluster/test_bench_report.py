"""Reports: the figures of several servers side by side, a stable schema, and a page that needs no network."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import jsonschema
import pytest

from cluster.bench import serve
from cluster.bench.engine_sections import overhead_sections
from cluster.bench.machine import Machine
from cluster.bench.overhead import report as overhead_report
from cluster.bench.page import Section, page
from cluster.bench.plots import Axis, Series, line_chart
from cluster.bench.recording import Outcome
from cluster.bench.report import Server, ServeReport
from cluster.bench.result import Result, result
from cluster.bench.serve_sections import sections
from cluster.bench.workload import Objectives, Workload, closed, open_loop

MACHINE = Machine(
    tandem="0", began="2026-01-01T00:00:00+00:00", processor="a <fast> & cheap one", cores=2, memory=2**30,
    system="Linux", python="3.11", load=0.0,
)  # fmt: skip
OBJECTIVES = Objectives(ttft=0.5, tpot=0.1)


def made(server: str, work: Workload, repetition: int, ttft: float, tpot: float, failed: int = 0) -> Result:
    """A run in which all requests were answered alike, but for the first `failed`."""
    outcomes = [
        Outcome(0.0, (), 3, 4, 0, failure="no") if number < failed
        else Outcome(0.0, (ttft, ttft + tpot, ttft + 2 * tpot), 3, 4, 3)
        for number in range(len(work.arrivals))
    ]  # fmt: skip
    return result(
        server, work, repetition, outcomes, OBJECTIVES,
        processor=(1.0, 0.0, 1.0), late=0.0, wall=1.0, known=True, memory=2**20,
    )  # fmt: skip


SINGLE = closed("single", "single", requests=2, at_once=1, prompt="4", output="3", seed=0)
SLOW, FAST = (open_loop(rate, 1.0, requests=10, prompt="4", output="3", seed=0) for rate in (1, 2))


def results() -> list[Result]:
    return [
        made("ours", SINGLE, 0, 0.1, 0.02),
        made("theirs", SINGLE, 0, 0.1, 0.04),
        made("theirs", SINGLE, 1, 0.1, 0.08),
        made("ours", SINGLE, 1, 0.1, 0.04),
        made("ours", SLOW, 0, 0.1, 0.02),
        made("ours", FAST, 0, 0.1, 0.02, failed=2),
        made("theirs", SLOW, 0, 0.1, 0.02, failed=10),
        made("theirs", FAST, 0, 0.1, 0.02, failed=10),
    ]


def report(given: list[Result] | None = None) -> ServeReport:
    class Named:
        """What a report wants to know of a server."""

        def __init__(self, name: str) -> None:
            self.name, self.model, self.prompts, self.endpoint = name, "m", "tokens", self
            self.url = "http://host"

    servers = [Named("ours"), Named("theirs")]
    return serve.report("serve", MACHINE, servers, given or results(), {"tests": "single"})  # type: ignore[arg-type]


def test_figures_are_medians_over_the_repetitions_of_a_server() -> None:
    found = {(one.server, one.test, one.figure): one.spread for one in report().figures}
    assert found["ours", "single", "tpot_p50"].values == pytest.approx((0.02, 0.04))
    assert found["ours", "single", "decode_rate"].values == pytest.approx((50.0, 25.0))
    assert found["theirs", "single", "tpot_p50"].median == pytest.approx(0.06)


def test_ratios_pair_the_repetitions_of_the_first_server_with_the_others() -> None:
    (found,) = [one for one in report().ratios if (one.test, one.figure) == ("single", "decode_rate")]
    assert (found.server, found.against) == ("ours", "theirs")
    assert found.spread.values == pytest.approx((2.0, 2.0))


def test_goodput_lies_between_the_rates_that_were_tried() -> None:
    found = {one.server: one.goodput for one in report().goodput}
    assert (found["ours"].rate, found["ours"].bound) == (pytest.approx(1.5), "at")
    assert found["theirs"].bound == "below"


FIELDS = """
command figures.figure figures.server figures.spread.high figures.spread.low figures.spread.median
figures.spread.values figures.test goodput.goodput.bound goodput.goodput.rate goodput.server machine.began
machine.cores machine.load machine.memory machine.processor machine.python machine.system machine.tandem
ratios.against ratios.figure ratios.server ratios.spread.high ratios.spread.low ratios.spread.median
ratios.spread.values ratios.test results.attainment.met results.attainment.rate results.attainment.share
results.attainment.tpot results.attainment.ttft results.client.cores results.client.event_seconds
results.client.late results.cut results.duration results.errors results.events results.failed
results.itl.count results.itl.mean results.itl.most results.itl.p50 results.itl.p90 results.itl.p99
results.kind results.latency.count results.latency.mean results.latency.most results.latency.p50
results.latency.p90 results.latency.p99 results.memory results.other_cores results.output_rate
results.output_tokens results.prompt_tokens results.rate results.repetition results.request_rate
results.requests results.server results.test results.total_rate results.tpot.count results.tpot.mean
results.tpot.most results.tpot.p50 results.tpot.p90 results.tpot.p99 results.ttft.count results.ttft.mean
results.ttft.most results.ttft.p50 results.ttft.p90 results.ttft.p99 servers.model servers.name
servers.prompts servers.url settings.tests
"""


def leaves(value: object, path: str = "") -> set[str]:
    if isinstance(value, dict):
        return {leaf for key, one in value.items() for leaf in leaves(one, f"{path}.{key}" if path else key)}
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        return {leaf for one in value for leaf in leaves(one, path)}
    return {path}


def test_the_json_of_a_report_has_these_fields_and_no_others() -> None:
    assert leaves(json.loads(report().model_dump_json())) == set(FIELDS.split())


def test_the_json_of_a_report_follows_its_own_schema() -> None:
    schema = ServeReport.model_json_schema()
    jsonschema.validate(json.loads(report().model_dump_json()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"command": "serve"}, schema)


def test_the_page_is_well_formed_and_holds_the_report() -> None:
    found = report()
    text = page("tandem <bench> & more", sections(found), found)
    tree = ElementTree.fromstring(text.removeprefix("<!doctype html>"))
    data = next(one for one in tree.iter("script") if one.get("id") == "report")
    assert ServeReport.model_validate_json(data.text or "") == found
    assert sum(1 for one in tree.iter() if one.tag.endswith("svg")) == 4


def test_the_page_asks_nobody_for_anything() -> None:
    found = report()
    text = page("t", sections(found), found)
    shown = text[: text.index('<script type="application/json"')]
    allowed = shown.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?://|src=|href=|@import|url\(", allowed)


def test_failures_are_told_in_the_servers_words() -> None:
    quality = sections(report())[-1]
    assert ["ours", "2", "0"] in [list(row[:3]) for row in quality.rows]
    assert "theirs: no" in quality.note


def test_text_on_a_page_is_text() -> None:
    found = page("t", [Section("<b>", ["<i>"], [["<script>alert(1)</script>"]])], report())
    assert "<b>" not in found and "<i>" not in found and "alert(1)</script>" not in found


def test_a_plot_shows_points_where_they_belong() -> None:
    chart = line_chart("t", Axis("x"), Axis("y"), [Series("one", [(0, 0), (10, 5)], [(0, 1), (4, 5)])])
    tree = ElementTree.fromstring(chart)
    circles = [one for one in tree.iter() if one.tag.endswith("circle")]
    (x0, y0), (x1, y1) = ((float(one.get("cx") or 0), float(one.get("cy") or 0)) for one in circles)
    assert (x0, y0) == (64.0, 274.0) and (x1, y1) == (604.0, 30.0), "the corners of the frame"


def test_a_plot_on_log_axes_puts_equal_factors_at_equal_distances() -> None:
    points = [(1.0, 1.0), (4.0, 10.0), (16.0, 100.0)]
    chart = line_chart("t", Axis("x", log=True), Axis("y", log=True), [Series("one", points)])
    circles = [one for one in ElementTree.fromstring(chart).iter() if one.tag.endswith("circle")]
    xs = [float(one.get("cx") or 0) for one in circles]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)


def test_a_plot_of_nothing_is_still_a_plot() -> None:
    ElementTree.fromstring(line_chart("t", Axis("x", log=True), Axis("y"), [Series("one", [])]))


def test_overhead_is_what_the_server_loses_against_the_bare_engine_of_the_same_repetition() -> None:
    work = closed("batch", "batch 2", requests=2, at_once=2, prompt="4", output="3", seed=0)
    # Three tokens of each of two requests within ttft + 2 × tpot seconds.
    given = [
        made("engine", work, 0, 0.10, 0.20),
        made("tandem", work, 0, 0.14, 0.205),
        made("tandem", work, 1, 0.24, 0.23),
        made("engine", work, 1, 0.20, 0.20),
    ]
    servers = [Server(name=name, url="", model="m", prompts="tokens") for name in ("tandem", "engine")]
    (cost,) = overhead_report(MACHINE, {}, servers, given).costs
    assert cost.throughput is not None and cost.ttft is not None and cost.tpot is not None
    assert cost.throughput.values == pytest.approx((1 - 0.5 / 0.55, 1 - 0.6 / 0.7))
    assert cost.ttft.values == pytest.approx((0.04, 0.04))
    assert cost.tpot.values == pytest.approx((0.005, 0.03))
    assert overhead_sections(overhead_report(MACHINE, {}, servers, given))[0].rows[0][0] == "batch 2"
