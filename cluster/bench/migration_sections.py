"""The table of a report on migration."""

from __future__ import annotations

from cluster.bench.migration import WAYS, MigrationReport
from cluster.bench.page import Section
from cluster.bench.serve_sections import spread_text


def migration_sections(report: MigrationReport) -> list[Section]:
    rows = [
        [
            one.way,
            str(one.context),
            spread_text(one.pause, 1e3),
            f"{one.step * 1e3:.1f}",
            f"{one.pause.median / one.step:.1f}",
            str(one.stages),
            f"{one.sent / 2**20:.1f}",
        ]
        for one in sorted(report.pauses, key=lambda one: (WAYS.index(one.way), one.context))
    ]
    columns = ["way", "context", "pause ms", "step ms", "steps", "stages", "sent MiB"]
    growth = [f"{way} {_growth(report, way):.1f}×" for way in WAYS]
    note = (
        "From the last token at the source to the first at the destination: medians ± the farthest. "
        f"Longest over shortest median: {', '.join(growth)}."
    )
    return [Section("How long a stream pauses when its request moves", columns, rows, note)]


def _growth(report: MigrationReport, way: str) -> float:
    medians = [one.pause.median for one in report.pauses if one.way == way]
    return max(medians) / min(medians)
