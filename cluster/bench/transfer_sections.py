"""The table of a report on transports."""

from __future__ import annotations

from cluster.bench.page import Section
from cluster.bench.serve_sections import spread_text
from cluster.bench.transfer import TransferReport


def transfer_sections(report: TransferReport) -> list[Section]:
    rows = [
        [
            one.transport,
            f"{one.chunk / 2**20:g}",
            spread_text(one.bandwidth, 1e-9),
            f"{one.chunk / one.bandwidth.median * 1e3:.2f}",
            spread_text(one.seconds, 1e6),
        ]
        for one in report.speeds
    ]
    columns = ["transport", "chunk MiB", "GB/s", "ms a chunk", "round trip µs"]
    note = " ".join(f"Not {name}: {reason}." for name, reason in report.missing.items())
    return [Section("How fast KV goes between two processes here", columns, rows, note)]
