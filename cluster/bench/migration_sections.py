"""The table of a report on migration."""

from __future__ import annotations

from cluster.bench.handoff import Handoff
from cluster.bench.migration import WAYS, MigrationReport
from cluster.bench.page import Section
from cluster.bench.serve_sections import spread_text
from cluster.bench.statistics import Estimate
from cluster.units import counted


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
    pauses = Section("How long a stream pauses when its request moves", columns, rows, note)
    return [pauses] if report.handoff is None else [pauses, *_handoff(report.handoff)]


def _handoff(found: Handoff) -> list[Section]:
    """What a handoff costs, and when its copies were made."""
    rows = [
        [
            "read where it decodes",
            spread_text(found.colocated, 1e3),
            spread_text(found.second_colocated, 1e3),
        ],
        ["handed over", spread_text(found.handed, 1e3), spread_text(found.second_handed, 1e3)],
    ]
    pairs = len(found.cost.values)
    cost = (
        f"The handoff adds {_estimate(found.cost)} to TTFT and {_estimate(found.work)} to the CPU time until "
        f"the first token: medians over {counted(pairs, 'pair')}, 95 % of the bootstrap's within the "
        f"brackets. Sending and receiving took {spread_text(found.copying, 1e3)} ms until then."
    )
    times = [
        [span.what, f"{span.begin * 1e3:.1f}", f"{span.end * 1e3:.1f}", str(span.size)]
        for span in found.timeline
    ]
    overlap = f"{found.beside:.0%} of sending and receiving went on while the prompt was computed."
    return [
        Section(f"A prompt of {found.prompt} tokens", ["way", "TTFT ms", "second token ms"], rows, cost),
        Section("One handoff", ["what", "from ms", "to ms", "tokens or blocks"], times, overlap),
    ]


def _estimate(found: Estimate) -> str:
    return f"{found.median:+.1%} [{found.low:+.1%}, {found.high:+.1%}]"


def _growth(report: MigrationReport, way: str) -> float:
    medians = [one.pause.median for one in report.pauses if one.way == way]
    return max(medians) / min(medians)
