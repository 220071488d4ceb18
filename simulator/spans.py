"""What one instance worked on when: for the eye, so of the first requests only, and not too many spans."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

MOST_REQUESTS, MOST_SPANS = 60, 200


@dataclass(slots=True)
class Span:
    """Seconds from `start` to `end` without a pause; `decode` or prefill."""

    start: float
    end: float
    decode: bool


@dataclass(slots=True)
class Spans:
    """Spans by request, in the order in which the instance began with them."""

    requests: dict[str, list[Span]] = field(default_factory=dict)

    def add(self, request_ids: Iterable[tuple[str, bool]], start: float, end: float) -> None:
        """A step, or many alike: (request, whether in decode) of those who were in it."""
        for request_id, decode in request_ids:
            spans = self.requests.get(request_id)
            if spans is None:
                if len(self.requests) == MOST_REQUESTS:
                    continue
                spans = self.requests[request_id] = []
            if spans and spans[-1].end == start and spans[-1].decode == decode:
                spans[-1].end = end
            elif len(spans) < MOST_SPANS:
                spans.append(Span(start, end, decode))
