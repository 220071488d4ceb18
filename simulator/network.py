"""Links between instances: bytes take time, and what shares a link waits for it."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.clock import Callback, VirtualClock


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """`bandwidth` in bytes a second, `latency` in seconds for every message.

    Each instance has one link out and one in; with `shared` there is a single one for all.
    """

    bandwidth: float = 50e9
    latency: float = 0.0005
    shared: bool = False


class Network:
    """A transfer has the links at both its ends to itself, and waits until both are free: first come,
    first served."""

    def __init__(self, settings: LinkSettings, clock: VirtualClock) -> None:
        self.settings = settings
        self._clock = clock
        self._free: dict[str, float] = {}
        self.transferred = 0
        self.busy = 0.0

    def tell(self, callback: Callback) -> None:
        """A message without payload."""
        self._clock.after(self.settings.latency, callback)

    def send(self, source: str, destination: str, size: int, sent: Callback, arrived: Callback) -> None:
        """`size` bytes: `sent` when the last has left, `arrived` when it is there."""
        ends = ("",) if self.settings.shared else (f"{source}>", f">{destination}")
        start = max(self._clock.now(), *(self._free.get(end, 0.0) for end in ends))
        seconds = size / self.settings.bandwidth
        for end in ends:
            self._free[end] = start + seconds
        self.transferred += size
        self.busy += seconds
        self._clock.at(start + seconds, sent)
        self._clock.at(start + seconds + self.settings.latency, arrived)
