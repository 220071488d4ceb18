"""A transport that wraps another and slows, delays, cuts and damages what goes over it, to see what happens.

    sender ─ send ─▶ wait delay + bytes / rate ─▶ damage? ─▶ the wrapped channel ─▶ … its own checks find out
                          └─ cut: the connection ends

A specification is a line such as "delay=20ms rate=10Mi damage=0.05 cut=0.01": a delay and a rate of each
frame on its way out, and the shares of frames that are damaged or end the connection. "" is a sound link.
"""

from __future__ import annotations

import random
import re
import threading
from dataclasses import dataclass, field, replace

from engine.errors import InvalidParameter, TransferFailed
from migration.transport import Channel, Fill, Listener, Transport

UNITS: dict[str, dict[str, float]] = {
    "delay": {"us": 1e-6, "ms": 1e-3, "s": 1.0},
    "rate": {"": 1.0, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30},
    "damage": {"": 1.0},
    "cut": {"": 1.0},
}


@dataclass(frozen=True, slots=True)
class Fault:
    """`delay` in seconds, `rate` in bytes a second (0: no limit), `damage` and `cut` in shares of frames."""

    delay: float = 0.0
    rate: float = 0.0
    damage: float = 0.0
    cut: float = 0.0

    @classmethod
    def parse(cls, spec: str) -> Fault:
        """Raises InvalidParameter for what is no specification."""
        fault = cls()
        for word in spec.split():
            name, _, value = word.partition("=")
            match = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", value)
            units = UNITS.get(name, {})
            if match is None or match[2] not in units:
                raise InvalidParameter(
                    f"{word!r} is no fault of a link: delay=20ms, rate=10Mi, damage=0.05 and cut=0.01 are",
                    param="fault",
                )
            fault = replace(fault, **{name: float(match[1]) * units[match[2]]})
        if max(fault.damage, fault.cut) > 1:
            raise InvalidParameter("damage and cut are shares of frames, between 0 and 1", param="fault")
        return fault


@dataclass(slots=True)
class Faults:
    """What is wrong with the links of one process now. Threads may read `now` and `set` it at any time."""

    now: Fault = Fault()
    seed: int = 0
    frames: int = 0
    damaged: int = 0
    cuts: int = 0
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def set(self, spec: str) -> None:
        """From the next frame on. Raises InvalidParameter."""
        self.now = Fault.parse(spec)


class FaultyChannel:
    """See `transport.Channel`."""

    def __init__(self, inner: Channel, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults
        self._patience = threading.Event()
        self.tamper: Fill | None = None
        self.receive = inner.receive
        self.fileno = inner.fileno
        self.trust = inner.trust

    @property
    def pending(self) -> bool:
        return self._inner.pending

    def send(self, header: bytes, nbytes: int = 0, fill: Fill | None = None) -> None:
        faults, fault = self._faults, self._faults.now
        faults.frames += 1
        pause = fault.delay + (nbytes / fault.rate if fault.rate else 0.0)
        if pause and self._patience.wait(pause):
            raise TransferFailed("the connection is closed")
        if fault.cut and faults.rng.random() < fault.cut:
            faults.cuts += 1
            self._inner.close()
            raise TransferFailed("the link was cut")
        hurt = nbytes > 0 and fault.damage > 0 and faults.rng.random() < fault.damage
        faults.damaged += hurt
        self._inner.tamper = self._flip if hurt else None
        self._inner.send(header, nbytes, fill)

    def close(self) -> None:
        self._patience.set()
        self._inner.close()

    def _flip(self, payload: memoryview) -> None:
        place = self._faults.rng.randrange(len(payload))
        payload[place] ^= 1 << self._faults.rng.randrange(8)


class FaultyListener:
    """See `transport.Listener`."""

    def __init__(self, inner: Listener, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults
        self.address = inner.address
        self.fileno = inner.fileno
        self.close = inner.close

    def accept(self) -> FaultyChannel:
        return FaultyChannel(self._inner.accept(), self._faults)


class FaultyTransport:
    """See `transport.Transport`. Both ends' ways out are afflicted by the `faults` of their own process."""

    def __init__(self, inner: Transport, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults

    def listen(self, address: str) -> FaultyListener:
        return FaultyListener(self._inner.listen(address), self._faults)

    def connect(self, address: str, timeout: float) -> FaultyChannel:
        return FaultyChannel(self._inner.connect(address, timeout), self._faults)
