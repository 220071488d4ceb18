"""Where a request runs: one instance for its prefill, one for its decode.

    no prefill instance                prefill and decode at the best decode instance
    no decode instance                 prefill and decode at the best prefill instance
    the local rule says so             the same (conditional disaggregation)
    else                               each at the instance that the ranking puts first

Which is best is a Ranking's to say; both it and the local rule are named in the config. Cordoned instances
are never chosen. Excluded and stale ones are chosen when nothing else is left.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.errors import CapacityError, NoDecodeInstance, NoPrefillInstance
from engine.request import SLO
from global_scheduler.admission import fits
from global_scheduler.affinity import KEY_TOKENS, AffinityIndex, adapter_key
from global_scheduler.prediction import Forecast, Predictor
from global_scheduler.ranking import RANKINGS, Suit
from global_scheduler.view import ClusterView, Load, Share, Summary

PREFILL = "prefill"
DECODE = "decode"


@dataclass(frozen=True, slots=True)
class Placement:
    """`prefill == decode` means no handoff. `reason` is for the operator.

    `compute` are the prompt tokens that the prefill instance is expected to compute, None if all.
    """

    prefill: str
    decode: str
    reason: str
    forecast: Forecast | None = None
    compute: int | None = None

    @property
    def local(self) -> bool:
        return self.prefill == self.decode

    def shares(self, summary: Summary) -> dict[str, Share]:
        """What the request will ask of each instance named."""
        tokens = summary.prompt_tokens
        whole = Share(tokens if self.compute is None else self.compute, tokens)
        if self.local:
            return {self.prefill: whole}
        return {self.prefill: whole, self.decode: Share(0, tokens)}


@dataclass(frozen=True, slots=True)
class PlacementSettings:
    """`ranking` names one of RANKINGS.

    Without a `predictor`, prompts of which up to `local_prefill_tokens` are not cached are prefilled where
    they are decoded; with one it is decided by `slo`, which a request's own objectives replace. `headroom`
    is in blocks, `adapter_tokens` what loading an adapter costs in prompt tokens.
    """

    local_prefill_tokens: int = 32
    ranking: str = "freeness"
    predictor: Predictor | None = None
    slo: SLO = field(default_factory=SLO)
    headroom: int = 0
    adapter_tokens: int = 512


class Placer:
    """Decides by what it was told of instances; it remembers what it sent where."""

    def __init__(self, settings: PlacementSettings) -> None:
        self.settings = settings
        self.index = AffinityIndex()
        self._ranking = RANKINGS[settings.ranking]()

    def place(self, view: ClusterView, summary: Summary, now: float) -> Placement:
        """Choose the instances of a request.

        Raises NoPrefillInstance or NoDecodeInstance when neither pool has an instance that takes requests.
        """
        prefill, decode = (_usable(view, role, summary, now) for role in (PREFILL, DECODE))
        if not prefill and not decode:
            raise _nowhere([load for load in view.loads(now) if fits(load, summary)])
        suit = self._suit(summary)
        predictor = self.settings.predictor
        if not decode:
            there, why = self._ranking.prefill(prefill, suit)
            return self._local(there, f"no decode instance takes requests; {why}", suit, predictor)
        there, best = self._ranking.decode(decode, suit)
        if not prefill:
            return self._local(there, f"no prefill instance takes requests; {best}", suit, predictor)
        if predictor is not None:
            return self._predicted(prefill, there, best, suit, predictor)
        tokens = suit.compute(there)
        if tokens <= self.settings.local_prefill_tokens:
            what = "prompt tokens" if tokens == summary.prompt_tokens else "prompt tokens without a cache"
            return self._local(there, f"{tokens} {what} are prefilled where they are decoded; {best}", suit)
        first, why = self._ranking.prefill(prefill, suit)
        return Placement(first.instance, there.instance, f"{why}; {best}", compute=suit.compute(first))

    def sent(self, view: ClusterView, summary: Summary, placement: Placement) -> None:
        """Remember where the KV of the request's prompt is going to be."""
        keys = (*summary.prefix, adapter_key(summary.adapter)) if summary.adapter else summary.prefix
        if keys:
            for instance in {placement.prefill, placement.decode}:
                self.index.sent(instance, keys, view.slots(instance) // KEY_TOKENS)

    def _suit(self, summary: Summary) -> Suit:
        settings = self.settings
        return Suit(
            summary,
            self.index.hits(summary.prefix) if summary.prefix else {},
            self.index.has(adapter_key(summary.adapter)) if summary.adapter else frozenset(),
            settings.adapter_tokens,
            settings.headroom,
        )

    def _local(self, there: Load, why: str, suit: Suit, predictor: Predictor | None = None) -> Placement:
        compute = suit.compute(there)
        hold = suit.summary.prompt_tokens
        forecast = None if predictor is None else predictor.local(there, compute=compute, hold=hold)
        return Placement(there.instance, there.instance, why, forecast, compute)

    def _predicted(
        self, prefill: list[Load], there: Load, best: str, suit: Suit, predictor: Predictor
    ) -> Placement:
        """Both ways predicted: the faster of those that meet the objectives, else the less strained."""
        summary = suit.summary
        slo = objectives(summary, self.settings.slo)
        first, why = self._ranking.prefill(prefill, suit)
        hold = summary.prompt_tokens
        apart = predictor.apart(
            first, there, compute=suit.compute(first), hold=hold, output=summary.max_tokens
        )
        local = predictor.local(there, compute=suit.compute(there), hold=hold)
        if _rank(local, slo) < _rank(apart, slo):
            why = f"{there.instance} prefills it itself: {local}, not {apart} by way of {first.instance}"
            return self._local(there, f"{why}; {best}", suit, predictor)
        why = f"{why}: {apart}, not {local} at {there.instance} alone"
        return Placement(first.instance, there.instance, f"{why}; {best}", apart, suit.compute(first))


def objectives(summary: Summary, slo: SLO) -> SLO:
    """Those of the request; where it has none, those of the cluster."""
    return SLO(summary.slo.ttft or slo.ttft, summary.slo.tpot or slo.tpot)


def _rank(forecast: Forecast, slo: SLO) -> tuple[float, float]:
    strain = forecast.strain(slo)
    return (0.0, forecast.ttft) if strain <= 1.0 else (strain, forecast.ttft)


def _usable(view: ClusterView, role: str, summary: Summary, now: float) -> list[Load]:
    """Those of a role that are not cordoned and large enough: those not excluded and not stale.

    Failing that those not excluded; failing that all.
    """
    stored, excluded = summary.longest - 1, summary.exclude
    good = [load for load in view.open(role, now) if load.blocks * load.block_size >= stored]
    if excluded:
        good = [load for load in good if load.instance not in excluded]
    if good:
        return good
    every = [load for load in view.loads(now) if load.role == role and not load.cordoned]
    rest = [load for load in every if load.blocks * load.block_size >= stored]
    return [load for load in rest if load.instance not in excluded] or rest


def _nowhere(loads: list[Load]) -> CapacityError:
    known = {load.role for load in loads}
    message = "no instance takes requests: {} known, all draining; wait for new ones or scale a pool up"
    if known == {PREFILL}:
        return NoDecodeInstance(message.format(len(loads)))
    if loads:
        return NoPrefillInstance(message.format(len(loads)))
    return NoPrefillInstance("no instance is ready yet: wait until the pools are up")
