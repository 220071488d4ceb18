"""What a chaos run came to: requests lost, repeated or changed, how long streams stood still, the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from cluster import control_pb2 as pb
from cluster.chaos.client import Answer
from cluster.chaos.faults import Done
from cluster.chaos.scenario import Expect, Scenario

AFTERMATH = 15.0
"""Seconds after a fault in which the longest pause of a stream that it hit is taken for its resume time."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Figures of one run. Times in seconds; `failures` says why it did not pass, () if it did."""

    scenario: str
    sent: int
    finished: int
    lost: int
    duplicated: int
    changed: int
    exact: int
    recovered: int
    reconnected: int
    faults: int
    faults_failed: int
    resume_p50: float | None
    resume_max: float | None
    longest_pause: float
    itl_p99: float
    itl_p99_undisturbed: float
    ledger: str
    moves: Mapping[str, int] = field(default_factory=dict)
    failures: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.failures


def judge(
    scenario: Scenario,
    undisturbed: Sequence[Answer],
    answers: Sequence[Answer],
    faults: Sequence[Done],
    ledger: str,
    moves: Mapping[str, int],
) -> Verdict:
    """Compare each answer with the undisturbed one of its request. `ledger` says what is wrong with it."""
    expected = {answer.ask.number: answer for answer in undisturbed}
    whole = [answer for answer in answers if answer.whole]
    exact = [answer for answer in whole if _same(answer, expected[answer.ask.number])]
    resumes = sorted(resume_times(answers, [fault.time for fault in faults if not fault.error]))
    figures = {
        "lost": len(answers) - len(whole),
        "duplicated": sum(answer.repeated > 0 for answer in answers),
        "changed": len(whole) - len(exact),
    }
    longest = max((gap for answer in answers for _, gap in answer.gaps), default=0.0)
    broken = [answer for answer in undisturbed if not answer.whole]
    return Verdict(
        scenario=scenario.name,
        sent=len(answers),
        finished=len(whole),
        **figures,
        exact=len(exact),
        recovered=sum(answer.recoveries > 0 for answer in answers),
        reconnected=sum(answer.connections > 1 for answer in answers),
        faults=sum(not fault.error for fault in faults),
        faults_failed=sum(bool(fault.error) for fault in faults),
        resume_p50=median(resumes) if resumes else None,
        resume_max=resumes[-1] if resumes else None,
        longest_pause=longest,
        itl_p99=_p99(answers),
        itl_p99_undisturbed=_p99(undisturbed),
        ledger=ledger,
        moves=dict(moves),
        failures=tuple(_failures(scenario.expect, figures, longest, ledger, broken, faults)),
    )


def _failures(
    expect: Expect,
    figures: Mapping[str, int],
    longest: float,
    ledger: str,
    broken: Sequence[Answer],
    faults: Sequence[Done],
) -> list[str]:
    found = [
        f"{name}: {count}, and not more than {getattr(expect, name)} were expected"
        for name, count in figures.items()
        if count > getattr(expect, name)
    ]
    if expect.resume and longest > expect.resume:
        found.append(f"a stream stood still for {longest:.2f} s, more than {expect.resume:g} s")
    if ledger:
        found.append(f"the ledger: {ledger}")
    if broken:
        found.append(f"{len(broken)} requests failed undisturbed: {broken[0].error}")
    if faults and all(fault.error for fault in faults):
        found.append(f"no fault could be carried out: {faults[0].error}")
    return found


def resume_times(answers: Sequence[Answer], faults: Sequence[float]) -> list[float]:
    """For each stream that was recovered or came back: its longest pause that a fault may have caused."""
    found = []
    for answer in answers:
        if not answer.recoveries and answer.connections < 2:
            continue
        hit = [gap for begun, gap in answer.gaps if any(begun - 1 <= at <= begun + gap for at in faults)]
        late = [gap for begun, gap in answer.gaps if any(at <= begun <= at + AFTERMATH for at in faults)]
        if hit or late:
            found.append(max(hit or late))
    return found


def moves(before: pb.ClusterStatus, after: pb.ClusterStatus) -> dict[str, int]:
    """Moves between two looks, by outcome; all since the controller began if it began in between."""
    counts: Counter[str] = Counter()
    for one in after.migrations.counts:
        counts[one.outcome] += one.count
    if after.uptime > before.uptime:
        for one in before.migrations.counts:
            counts[one.outcome] -= one.count
    return {outcome: count for outcome, count in counts.items() if count}


def ledger(status: pb.ClusterStatus) -> str:
    """What is wrong with the instances' books when nothing runs any more; "" if nothing is."""
    for one in status.instances:
        blocks = one.status
        if blocks.running or blocks.waiting:
            return f"{one.name} still has {blocks.running + blocks.waiting} requests"
        if blocks.blocks_used or blocks.blocks_reserved:
            return f"{one.name} has {blocks.blocks_used} blocks in use, {blocks.blocks_reserved} reserved"
        if blocks.blocks_free + blocks.blocks_cached != blocks.blocks_total:
            known = f"{blocks.blocks_free} free + {blocks.blocks_cached} cached"
            return f"{one.name} has {known} of {blocks.blocks_total} blocks"
    return ""


def _same(answer: Answer, expected: Answer) -> bool:
    return (answer.texts, answer.ends, answer.tokens) == (expected.texts, expected.ends, expected.tokens)


def _p99(answers: Sequence[Answer]) -> float:
    """Of the pauses between events of streams that nothing interrupted."""
    calm = (answer for answer in answers if not answer.recoveries and answer.connections < 2)
    gaps = sorted(gap for answer in calm for _, gap in answer.gaps)
    return gaps[int(0.99 * (len(gaps) - 1))] if gaps else 0.0
