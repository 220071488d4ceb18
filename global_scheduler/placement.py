"""Where a request runs: one instance for its prefill, one for its decode.

    short prompt, or no prefill instance     prefill and decode at the freest decode instance
    no decode instance                       prefill and decode at the freest prefill instance
    else                                     prefill where the fewest tokens wait, decode where it is freest

Cordoned instances are never chosen. Excluded and stale ones are chosen when nothing else is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.errors import CapacityError, NoDecodeInstance, NoPrefillInstance
from global_scheduler.admission import fits
from global_scheduler.freeness import backlog, freeness
from global_scheduler.view import ClusterView, Load, Share, Summary

PREFILL = "prefill"
DECODE = "decode"


@dataclass(frozen=True, slots=True)
class Placement:
    """`prefill == decode` means no handoff. `reason` is for the operator."""

    prefill: str
    decode: str
    reason: str

    @property
    def local(self) -> bool:
        return self.prefill == self.decode

    def shares(self, summary: Summary) -> dict[str, Share]:
        """What the request will ask of each instance named."""
        whole = Share(summary.prompt_tokens, summary.prompt_tokens)
        if self.local:
            return {self.prefill: whole}
        return {self.prefill: whole, self.decode: Share(0, summary.prompt_tokens)}


@dataclass(frozen=True, slots=True)
class PlacementSettings:
    """`local_prefill_tokens`: prompts up to this many tokens are prefilled where they are decoded."""

    local_prefill_tokens: int = 32


def place(view: ClusterView, summary: Summary, now: float, settings: PlacementSettings) -> Placement:
    """Choose the instances of a request.

    Raises NoPrefillInstance or NoDecodeInstance when neither pool has an instance that takes requests.
    """
    loads = [load for load in view.loads(now) if fits(load, summary)]
    usable = [load for load in loads if not load.cordoned]
    prefill = _prefer([load for load in usable if load.role == PREFILL], summary)
    decode = _prefer([load for load in usable if load.role == DECODE], summary)
    if not prefill and not decode:
        raise _nowhere(loads)
    freest = _freest(summary.prompt_tokens)
    if not decode:
        there = max(prefill, key=freest)
        return Placement(there.instance, there.instance, _why("no decode instance takes requests", there))
    there = max(decode, key=freest)
    if not prefill:
        return Placement(there.instance, there.instance, _why("no prefill instance takes requests", there))
    if summary.prompt_tokens <= settings.local_prefill_tokens:
        short = f"{summary.prompt_tokens} prompt tokens are prefilled where they are decoded"
        return Placement(there.instance, there.instance, _why(short, there))
    first = min(prefill, key=lambda load: (backlog(load), -freest(load)))
    reason = f"{first.instance} has the fewest queued tokens ({backlog(first)})"
    return Placement(first.instance, there.instance, _why(reason, there))


def _freest(hold: int) -> Callable[[Load], float]:
    return lambda load: freeness(load, hold=hold)


def _prefer(loads: list[Load], summary: Summary) -> list[Load]:
    """Those not excluded and not stale; failing that those not excluded; failing that all."""
    others = [load for load in loads if load.instance not in summary.exclude]
    return [load for load in others if not load.stale] or others or loads


def _why(what: str, there: Load) -> str:
    return f"{what}; {there.instance} is freest ({freeness(there):.1f} blocks per request)"


def _nowhere(loads: list[Load]) -> CapacityError:
    known = {load.role for load in loads}
    message = "no instance takes requests: {} known, all draining; wait for new ones or scale a pool up"
    if known == {PREFILL}:
        return NoDecodeInstance(message.format(len(loads)))
    if loads:
        return NoPrefillInstance(message.format(len(loads)))
    return NoPrefillInstance("no instance is ready yet: wait until the pools are up")
