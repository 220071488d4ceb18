"""What `tandem bench migration` measures, and how it says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.bench.handoff import Span, beside
from cluster.bench.machine import Machine
from cluster.bench.migration import LIVE, WAYS, MigrationReport, Pause, measure
from cluster.bench.migration_sections import migration_sections
from cluster.bench.statistics import Spread
from cluster.config import Config


def test_the_table_has_a_row_for_each_way_and_context_and_says_how_pauses_grow() -> None:
    pauses = [
        Pause(way=way, context=context, pause=Spread.of([context / 1e4]), step=0.01, stages=1, sent=1 << 20)
        for context in (128, 512)
        for way in WAYS
    ]
    report = MigrationReport(command="migration", machine=Machine.here(), settings={}, pauses=tuple(pauses))
    (section,) = migration_sections(report)
    assert [tuple(row[:2]) for row in section.rows] == [(w, c) for w in WAYS for c in ("128", "512")]
    assert section.rows[0][2:5] == ["12.80", "10.0", "1.3"]
    assert f"{LIVE} 4.0×" in section.note


def test_every_way_moves_a_request_of_the_embedded_model(full: bool, tmp_path: Path) -> None:
    if not full:
        pytest.skip("loads the model twice: run with --full")
    config = Config.model_validate(
        {"engine": {"prefix_cache": False, "kv_memory": "64Mi"}, "cache": {"directory": str(tmp_path)}}
    )
    report = measure(
        config, 1, (32, 400), 1, 600, 2, begin=lambda title: lambda done, total: None, say=lambda line: None
    )
    assert {(one.way, one.context) for one in report.pauses} == {(w, c) for w in WAYS for c in (32, 400)}
    assert all(one.pause.low > 0 for one in report.pauses)
    live = next(one for one in report.pauses if (one.way, one.context) == (LIVE, 400))
    assert live.stages == 2
    assert report.handoff is not None
    what = {span.what for span in report.handoff.timeline}
    assert what >= {"source computes", "source sends", "destination receives", "destination computes"}
    assert 0 < report.handoff.beside < 1
    assert len(report.handoff.cost.values) == len(report.handoff.work.values) == 2
    assert 0 < report.handoff.copying.low < report.handoff.handed.low
    _, _, timeline = migration_sections(report)
    assert len(timeline.rows) == len(report.handoff.timeline)


def test_copies_beside_the_computation_are_told_from_those_after_it() -> None:
    def span(what: str, begin: float, end: float, size: int = 16) -> Span:
        return Span(what=what, begin=begin, end=end, size=size)

    chunks = [span("source computes", 0, 2), span("source computes", 2, 3), span("source computes", 3, 9, 1)]
    copies = [span("source sends", 1, 2), span("destination receives", 1.5, 2.5), span("source sends", 4, 6)]
    assert beside([*chunks, *copies], "source") == pytest.approx(0.5)
    assert beside(chunks, "source") == 0
