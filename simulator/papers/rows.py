"""A row of the table of papers: what we got over what the baseline got in the same run, and the paper."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """`ours` and `baseline` in `unit`; `published` is the paper's ratio, None where it has none.

    `better` says whether more is better or less. A ratio above 1 always means that ours is better.
    """

    paper: str
    system: str
    workload: str
    load: str
    metric: str
    unit: str
    baseline: float
    ours: float
    published: float | None
    better: str = "less"
    note: str = ""

    @property
    def ratio(self) -> float:
        first, second = (self.ours, self.baseline) if self.better == "more" else (self.baseline, self.ours)
        return first / second if second else math.inf

    @property
    def verdict(self) -> str:
        """Reproduced: the same sign as the paper's, and at least half of its log-ratio."""
        if self.published is None:
            return "no published figure"
        mine, theirs = math.log(self.ratio), math.log(self.published)
        if mine * theirs > 0 and abs(mine) >= 0.5 * abs(theirs):
            return "reproduced"
        return "same sign, less" if mine * theirs > 0 else "missed"
