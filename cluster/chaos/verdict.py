"""What a chaos run came to: requests lost, repeated or changed, how long streams stood still, the ledger."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from cluster import control_pb2 as pb
from cluster.chaos.client import Answer
from cluster.chaos.faults import Done
from cluster.chaos.footprint import Growth
from cluster.chaos.likeness import settle
from cluster.chaos.scenario import Expect, Fault, Scenario
from cluster.chaos.victims import CONTROLLER, KILLING
from migration.moved import COMMITTED

ENDING = (*KILLING, "stop", "terminate")

LATER = 15.0
"""Seconds after a fault in which the longest pause of a stream that it hit is taken for its resume time."""


@dataclass(frozen=True, slots=True)
class Aftermath:
    """What was found at the end. `ledger` says what is wrong with the instances' books, `left` what of the
    cluster should not be there any more; both empty if nothing is. `moves` are all moves by outcome, `asked`
    those that were asked for, and not made for the cluster's own reasons."""

    ledger: str = ""
    left: tuple[str, ...] = ()
    growth: tuple[Growth, ...] = ()
    moves: Mapping[str, int] = field(default_factory=dict)
    asked: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resume:
    """How long the streams stood still that one kind of fault hit, in seconds."""

    fault: str
    streams: int
    p50: float
    p90: float
    max: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Figures of one run. Times in seconds; `failures` says why it did not pass, () if it did.

    `reasons` says why requests were lost. `resumes` and `injected` are by fault: "kill decode" and so on.
    `hit` counts the streams that went on elsewhere after what ended processes, and those that were under way
    when a controller was. `compared` tokens had log-probabilities, `apart` at most; `bound` is what they may
    be, None: they were not compared.
    """

    scenario: str
    sent: int
    finished: int
    lost: int
    duplicated: int
    changed: int
    exact: int
    unlike: Mapping[str, int]
    reasons: Mapping[str, int]
    compared: int
    apart: float
    bound: float | None
    hit: int
    recovered: int
    reconnected: int
    faults: int
    faults_failed: int
    faults_missed: int
    injected: Mapping[str, int]
    resume_p50: float | None
    resume_max: float | None
    resumes: tuple[Resume, ...]
    longest_pause: float
    itl_p99: float
    itl_p99_undisturbed: float
    ledger: str
    left: tuple[str, ...]
    moves: Mapping[str, int]
    growth: tuple[Growth, ...]
    failures: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.failures


def judge(
    scenario: Scenario,
    undisturbed: Sequence[Answer],
    answers: Sequence[Answer],
    faults: Sequence[Done],
    aftermath: Aftermath = Aftermath(),
    bound: float | None = 0.0,
) -> Verdict:
    """Compare each answer with the undisturbed one of its request; `bound` is as in `likeness`."""
    settle(answers, undisturbed, bound)
    found = [answer.likeness for answer in answers if answer.likeness is not None]
    unlike = Counter(one.changed for one in found if one.changed)
    carried_out = [fault for fault in faults if fault.carried_out]
    hits = resume_times(answers, carried_out)
    resumes = sorted(seconds for _, seconds in hits)
    told = Verdict(
        scenario=scenario.name,
        sent=len(answers),
        finished=len(found),
        lost=len(answers) - len(found),
        duplicated=sum(answer.repeated > 0 for answer in answers),
        changed=unlike.total(),
        exact=len(found) - unlike.total(),
        unlike=dict(unlike),
        reasons=dict(Counter(one.error or "cut off" for one in answers if one.likeness is None)),
        compared=sum(one.tokens for one in found),
        apart=max((one.apart for one in found), default=0.0),
        bound=bound,
        hit=_hit(answers, carried_out, hits),
        recovered=sum(answer.recoveries > 0 for answer in answers),
        reconnected=sum(answer.connections > 1 for answer in answers),
        faults=len(carried_out),
        faults_failed=sum(bool(fault.error) for fault in faults),
        faults_missed=sum(bool(fault.missed) for fault in faults),
        injected=dict(Counter(map(_named, carried_out))),
        resume_p50=median(resumes) if resumes else None,
        resume_max=resumes[-1] if resumes else None,
        resumes=_by_fault(hits),
        longest_pause=max((gap for answer in answers for _, gap in answer.gaps), default=0.0),
        itl_p99=_p99(answers),
        itl_p99_undisturbed=_p99(undisturbed),
        ledger=aftermath.ledger,
        left=aftermath.left,
        moves=dict(aftermath.moves),
        growth=aftermath.growth,
    )
    failures = (
        *_failures(scenario.expect, told, undisturbed),
        *_undone(scenario.faults, faults),
        *_unseen(scenario, told, carried_out, aftermath.asked),
    )
    return replace(told, failures=failures)


def _failures(expect: Expect, told: Verdict, undisturbed: Sequence[Answer]) -> Iterator[str]:
    for name in ("lost", "duplicated", "changed"):
        count, most = getattr(told, name), getattr(expect, name)
        if count > most:
            known = {"changed": told.unlike, "lost": told.reasons}.get(name)
            why = f" ({_counted(known)})" if known else ""
            yield f"{name}: {count}{why}, and not more than {most} were expected"
    if expect.resume and (told.resume_max or 0) > expect.resume:
        yield f"a stream that was hit stood still for {told.resume_max:.2f} s, more than {expect.resume:g} s"
    if expect.pause and told.longest_pause > expect.pause:
        yield f"a stream stood still for {told.longest_pause:.2f} s, more than {expect.pause:g} s"
    if told.ledger:
        yield f"the ledger: {told.ledger}"
    if told.left:
        yield f"left behind: {', '.join(told.left)}"
    for one in told.growth:
        if expect.growth and one.slope is None:
            yield f"the growth of {one.kind} was not measured: it was watched for {one.seconds:g} s"
        if expect.growth and one.slope is not None and one.slope > expect.growth:
            yield f"{one.kind} grows by {one.slope / 2**20:.0f} MiB an hour"
        for name, what in (("handles", "files"), ("sockets", "sockets")):
            count, most = getattr(one, name), getattr(expect, name)
            if count > most:
                yield f"{one.kind} has {count} more open {what} than at first, and {most} were expected"
    broken = [answer for answer in undisturbed if not answer.whole]
    if broken:
        yield f"{len(broken)} requests failed undisturbed: {broken[0].error}"


def _undone(asked: Sequence[Fault], faults: Sequence[Done]) -> Iterator[str]:
    """What a run proves nothing about: faults that failed, and those that were not carried out even once."""
    alike = Counter((one.kind, one.target) for one in asked)
    for number, fault in enumerate(asked):
        name = f"{fault.kind} {fault.target}"
        if alike[fault.kind, fault.target] > 1:
            name += f" at {fault.at:g} s"
        begun = [one for one in faults if one.fault == number]
        failed = [one for one in begun if one.error]
        if failed:
            count = f"{len(failed)} of {len(begun)}"
            yield f"{name}: {count} could not be carried out: {failed[0].error}"
        elif not any(one.carried_out for one in begun):
            why = begun[0].missed if begun else "the load ended before"
            yield f"{name}: not carried out even once: {why}"


def _unseen(
    scenario: Scenario, told: Verdict, carried_out: Sequence[Done], asked: Mapping[str, int]
) -> Iterator[str]:
    """What a run proves nothing about, although its faults were carried out."""
    least = scenario.expect.hit
    if least is None:
        least = int(any(fault.kind in KILLING for fault in carried_out))
    if told.hit < least:
        what = f"only {told.hit} streams were hit" if told.hit else "nothing was hit"
        yield f"{what}: it had to be {least} streams at least"
    if any(fault.kind == "migrate" for fault in carried_out) and not asked.get(COMMITTED):
        yield f"no move that was asked for was committed ({_counted(asked) or 'none came to an end'})"
    if scenario.load.logprobs and told.bound is not None and told.finished and not told.compared:
        yield "no log-probabilities were compared"


def _hit(answers: Sequence[Answer], faults: Sequence[Done], hits: Sequence[tuple[str, float]]) -> int:
    """Streams that went on elsewhere. A controller has none: those that were under way when it died count."""
    ending = {_named(fault) for fault in faults if fault.kind in ENDING}
    times = [fault.time for fault in faults if fault.kind in KILLING and fault.role == CONTROLLER]
    under_way = [
        answer for answer in answers
        if answer.times and any(answer.times[0] <= time <= answer.times[-1] for time in times)
    ]  # fmt: skip
    return sum(name in ending for name, _ in hits) + len(under_way)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def resume_times(answers: Sequence[Answer], faults: Sequence[Done]) -> list[tuple[str, float]]:
    """For each stream that was recovered or came back: the fault, and the longest pause that it may have
    caused. Of several it is one that has streams go on elsewhere, not one that moves them."""
    found = []
    for answer in answers:
        if not answer.recoveries and answer.connections < 2:
            continue
        hit = [
            (gap, fault) for begun, gap in answer.gaps for fault in faults
            if begun - 1 <= fault.time <= begun + gap
        ]  # fmt: skip
        late = [
            (gap, fault) for begun, gap in answer.gaps for fault in faults
            if fault.time <= begun <= fault.time + LATER
        ]  # fmt: skip
        if hit or late:
            gap, fault = max(hit or late, key=lambda one: (one[1].kind in ENDING, one[0], one[1].time))
            found.append((_named(fault), gap))
    return found


def _named(fault: Done) -> str:
    return f"{fault.kind} {fault.role or fault.victim}"


def _by_fault(hits: Sequence[tuple[str, float]]) -> tuple[Resume, ...]:
    found = []
    for name in sorted({name for name, _ in hits}):
        times = sorted(seconds for one, seconds in hits if one == name)
        p90 = times[math.ceil(0.9 * len(times)) - 1]
        found.append(Resume(name, len(times), median(times), p90, times[-1]))
    return tuple(found)


def moves(before: pb.ClusterStatus, after: pb.ClusterStatus) -> Counter[tuple[str, str]]:
    """Moves between two looks, by cause and outcome; all since the controller began if it began in between.

    It has if it is younger, or has counted less: it may be older than the one before it became.
    """
    earlier, later = _moved(before), _moved(after)
    anew = after.uptime < before.uptime or any(later[key] < count for key, count in earlier.items())
    return later if anew else later - earlier


def _moved(status: pb.ClusterStatus) -> Counter[tuple[str, str]]:
    return Counter({(one.cause, one.outcome): one.count for one in status.migrations.counts})


def by_outcome(moves: Mapping[tuple[str, str], int], cause: str = "") -> dict[str, int]:
    """Those of a cause, or all."""
    counts: Counter[str] = Counter()
    for (why, outcome), count in moves.items():
        if cause in ("", why):
            counts[outcome] += count
    return dict(counts)


def ledger(status: pb.ClusterStatus) -> str:
    """What is wrong with the instances' books when nothing runs any more; "" if nothing is."""
    for one in status.instances:
        blocks = one.status
        if not blocks.blocks_total:
            return f"{one.name} has told nothing of its blocks"
        if blocks.running or blocks.waiting:
            return f"{one.name} still has {blocks.running + blocks.waiting} requests"
        if blocks.blocks_used or blocks.blocks_reserved:
            return f"{one.name} has {blocks.blocks_used} blocks in use, {blocks.blocks_reserved} reserved"
        if blocks.blocks_free + blocks.blocks_cached != blocks.blocks_total:
            known = f"{blocks.blocks_free} free + {blocks.blocks_cached} cached"
            return f"{one.name} has {known} of {blocks.blocks_total} blocks"
    return ""


def _p99(answers: Sequence[Answer]) -> float:
    """Of the pauses between events of streams that nothing interrupted."""
    calm = (answer for answer in answers if not answer.recoveries and answer.connections < 2)
    gaps = sorted(gap for answer in calm for _, gap in answer.gaps)
    return gaps[int(0.99 * (len(gaps) - 1))] if gaps else 0.0
