"""The verdict of a chaos run: what passes, and that whatever is wrong, or was not seen, does not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from cluster import control_pb2 as pb
from cluster.chaos.client import Answer, Ask, Token, _event
from cluster.chaos.faults import Done
from cluster.chaos.footprint import Growth
from cluster.chaos.likeness import RECOMPUTED, bound_of
from cluster.chaos.scenario import Expect, Fault, Load, Scenario
from cluster.chaos.verdict import Aftermath, Verdict, judge, ledger, resume_times

KILL = Done(100.0, "kill", "decode-1", role="decode", target="decode")
SCENARIO = Scenario(
    name="made-up",
    load=Load(logprobs=0.0),
    faults=(Fault(kind="kill"),),
    expect=Expect(hit=0, resume=2.0, pause=2.2, growth=1 << 20, handles=8, sockets=16),
)


def answer(number: int = 0, text: str = "abc", **fields: object) -> Answer:
    ask = Ask(number, f"n-{number}", {"n": 1})
    whole = Answer(ask, {0: text}, {0: "length"}, [1.0, 1.1, 1.2], tokens=3, connections=1, done=True)
    return replace(whole, **fields)  # type: ignore[arg-type]


def verdict(
    answers: list[Answer],
    *,
    faults: tuple[Done, ...] = (KILL,),
    aftermath: Aftermath = Aftermath(),
    scenario: Scenario = SCENARIO,
    bound: float | None = 1e-4,
) -> Verdict:
    undisturbed = [answer(number) for number in range(3)]
    return judge(scenario, undisturbed, answers, faults, aftermath, bound)


def test_whole_answers_with_the_same_tokens_pass() -> None:
    told = verdict([answer(0), answer(1), answer(1)])
    assert told.passed
    assert (told.sent, told.finished, told.exact, told.lost) == (3, 3, 3, 0)


@pytest.mark.parametrize(
    ("bad", "figure"),
    [
        (answer(text="abd"), "changed"),
        (answer(tokens=4), "changed"),
        (answer(ends={0: "stop"}), "changed"),
        (answer(done=False), "lost"),
        (answer(ends={}), "lost"),
        (answer(error="503"), "lost"),
        (answer(repeated=1), "duplicated"),
    ],
)
def test_mutant_every_bad_answer_fails_the_run(bad: Answer, figure: str) -> None:
    told = verdict([answer(1), bad])
    assert getattr(told, figure) == 1
    assert not told.passed
    assert figure in told.failures[0]


def test_why_requests_were_lost_is_said() -> None:
    told = verdict([answer(1), answer(error="no room"), answer(error="no room"), answer(done=False)])
    assert told.failures[0] == "lost: 3 (2 no room, 1 cut off), and not more than 0 were expected"


def test_a_stream_that_stands_still_too_long_fails_the_run() -> None:
    told = verdict([answer(times=[1.0, 1.1, 3.5])])
    assert told.longest_pause == pytest.approx(2.4)
    assert "stood still for 2.40 s" in told.failures[0]


def test_a_ledger_that_does_not_balance_fails_the_run() -> None:
    assert not verdict([answer()], aftermath=Aftermath("decode-0 has 3 blocks in use, 0 reserved")).passed


def test_what_is_left_behind_fails_the_run() -> None:
    told = verdict([answer()], aftermath=Aftermath(left=("the process of decode-3",)))
    assert told.failures == ("left behind: the process of decode-3",)


def test_a_stream_that_was_hit_and_stood_still_too_long_fails_the_run() -> None:
    kill = replace(KILL, time=1.2)
    told = verdict([answer(times=[1.0, 1.1, 3.2], recoveries=1), answer(1)], faults=(kill,))
    assert told.failures == ("a stream that was hit stood still for 2.10 s, more than 2 s",)
    assert [(one.fault, one.streams) for one in told.resumes] == [("kill decode", 1)]
    assert told.injected == {"kill decode": 1}


def test_memory_that_grows_fails_the_run_and_so_do_handles() -> None:
    grown = Growth("decode", 1, 600.0, 3 * 2.0**20, 9, 0)
    leaky = Growth("gateway", 1, 600.0, -1.0, 9, 9)
    open_ = Growth("prefill", 1, 600.0, -1.0, 9, 8, 17)
    told = verdict([answer()], aftermath=Aftermath(growth=(grown, leaky, open_)))
    assert told.failures == (
        "decode grows by 3 MiB an hour",
        "gateway has 9 more open files than at first, and 8 were expected",
        "prefill has 17 more open sockets than at first, and 16 were expected",
    )


def test_a_fault_that_could_not_be_carried_out_fails_the_run_and_does_not_count() -> None:
    told = verdict([answer()], faults=(KILL, replace(KILL, error="decode-1 is on Ray's head node")))
    assert (told.faults, told.faults_failed) == (1, 1)
    assert told.failures == ("kill decode: 1 of 2 could not be carried out: decode-1 is on Ray's head node",)


@pytest.mark.parametrize(
    ("faults", "why"),
    [
        ((), "the load ended before"),
        ((replace(KILL, missed="no request decodes on decode-1"),), "no request decodes on decode-1"),
        ((replace(KILL, kind="stop", fault=1), replace(KILL, fault=2)), "the load ended before"),
    ],
    ids=["none began", "nothing to do", "only others"],
)
def test_a_fault_that_was_not_carried_out_even_once_fails_the_run(faults: tuple[Done, ...], why: str) -> None:
    assert verdict([answer()], faults=faults).failures == (f"kill decode: not carried out even once: {why}",)


def test_a_fault_that_found_nothing_to_do_once_is_no_failure() -> None:
    told = verdict([answer()], faults=(replace(KILL, missed="the request has ended"), KILL))
    assert told.passed
    assert (told.faults, told.faults_failed, told.faults_missed) == (1, 0, 1)


@pytest.mark.parametrize(
    "fault",
    [Fault(kind="apply", settings={"a": 1}, at=1.0), Fault(kind="link", link="cut=1", at=1.0)],
    ids=["apply", "link"],
)
def test_a_fault_that_never_began_is_not_hidden_by_another_of_its_kind(fault: Fault) -> None:
    scenario = SCENARIO.model_copy(update={"faults": (fault, fault.model_copy(update={"at": 8.0}))})
    first = Done(100.0, fault.kind, "decode", target="decode")
    told = verdict([answer()], faults=(first,), scenario=scenario)
    why = "not carried out even once: the load ended before"
    assert told.failures == (f"{fault.kind} decode at 8 s: {why}",)
    assert verdict([answer()], faults=(first, replace(first, fault=1)), scenario=scenario).passed


def test_an_undisturbed_run_that_failed_is_no_measure() -> None:
    told = judge(SCENARIO, [answer(error="no model")], [], [])
    assert "undisturbed: no model" in told.failures[0]


def test_the_resume_time_is_the_pause_around_the_fault_of_a_stream_that_was_hit() -> None:
    hit = answer(times=[1.0, 1.5, 2.4, 2.5], recoveries=1)
    calm = answer(times=[1.0, 2.9])
    kill, move = Done(1.6, "kill", "d", role="decode"), Done(1.7, "migrate", "d", role="decode")
    assert resume_times([hit, calm], [kill, move]) == [("kill decode", pytest.approx(0.9))]


@pytest.mark.parametrize("kind", ["kill", "stop", "hang"])
def test_a_stream_that_had_to_go_elsewhere_was_not_hit_by_a_move_that_took_longer(kind: str) -> None:
    hit = answer(times=[1.0, 1.8, 8.0, 8.5, 8.6], recoveries=1)
    move, fault = Done(1.1, "migrate", "d", role="decode"), Done(8.1, kind, "d", role="decode")
    assert resume_times([hit], [move, fault]) == [(f"{kind} decode", pytest.approx(0.5))]


def test_an_event_behind_the_last_position_is_a_repetition() -> None:
    one = answer(texts={}, ends={}, times=[])
    chunk = {"choices": [{"index": 0, "text": "a", "finish_reason": None}]}
    last = _event(one, chunk, "cmpl-x:5", "")
    assert _event(one, chunk, "cmpl-x:6", last) == "cmpl-x:6"
    assert one.repeated == 0
    _event(one, chunk, "cmpl-x:4", "cmpl-x:6")
    assert one.repeated == 1


def test_the_ledger_is_checked_on_every_instance() -> None:
    good = pb.InstanceStatus(blocks_total=10, blocks_free=7, blocks_cached=3)
    bad = pb.InstanceStatus(blocks_total=10, blocks_free=7, blocks_cached=2)
    unknown = pb.InstanceStatus()
    used = pb.InstanceStatus(blocks_total=10, blocks_free=9, blocks_used=1)

    def status(*each: pb.InstanceStatus) -> pb.ClusterStatus:
        return pb.ClusterStatus(instances=[pb.Instance(name="decode-0", status=one) for one in each])

    assert ledger(status(good, good)) == ""
    assert "7 free + 2 cached of 10" in ledger(status(good, bad))
    assert "1 blocks in use" in ledger(status(used))
    assert ledger(status(good, unknown)) == "decode-0 has told nothing of its blocks"


def test_growth_that_was_not_measured_fails_a_run_that_has_a_bound_on_it_and_no_other() -> None:
    short = Aftermath(growth=(Growth("decode", 1, 40.0, None, 9, 0),))
    told = verdict([answer()], aftermath=short)
    assert told.failures == ("the growth of decode was not measured: it was watched for 40 s",)
    unbound = SCENARIO.model_copy(update={"expect": Expect(hit=0)})
    assert verdict([answer()], aftermath=short, scenario=unbound).passed


def hitting(least: int | None) -> Scenario:
    return SCENARIO.model_copy(update={"expect": Expect(hit=least)})


HIT = answer(times=[99.5, 99.9, 100.4], recoveries=1)
UNDER_WAY = answer(times=[99.5, 99.9, 100.4])


@pytest.mark.parametrize(
    ("least", "answers", "failures"),
    [
        (None, [UNDER_WAY], ("nothing was hit: it had to be 1 streams at least",)),
        (None, [UNDER_WAY, HIT], ()),
        (2, [UNDER_WAY, HIT], ("only 1 streams were hit: it had to be 2 streams at least",)),
        (2, [HIT, HIT], ()),
        (0, [UNDER_WAY], ()),
    ],
)
def test_a_kill_must_have_hit_streams(
    least: int | None, answers: list[Answer], failures: tuple[str, ...]
) -> None:
    told = verdict(answers, scenario=hitting(least))
    assert told.failures == failures
    assert told.hit == answers.count(HIT)


def test_a_stream_that_something_else_hit_is_not_one_that_the_kill_has() -> None:
    cut = Done(100.1, "link", "decode-1", role="decode", target="decode")
    early = replace(KILL, time=10.0)
    told = verdict([HIT], faults=(early, cut), scenario=hitting(None))
    assert (told.hit, told.recovered) == (0, 1)
    assert told.failures == ("nothing was hit: it had to be 1 streams at least",)


@pytest.mark.parametrize(("time", "hit"), [(100.0, 1), (99.0, 0), (101.0, 0)])
def test_of_a_controller_that_is_killed_the_streams_under_way_count(time: float, hit: int) -> None:
    kill = Done(time, "kill", "controller", role="controller", target="controller")
    scenario = hitting(None).model_copy(update={"faults": (Fault(kind="kill", target="controller"),)})
    told = verdict([UNDER_WAY], faults=(kill,), scenario=scenario)
    assert told.hit == hit
    assert told.passed == (hit > 0)


def test_without_a_fault_that_kills_nothing_has_to_be_hit() -> None:
    assert moving({"committed": 1}, faults=(MOVE,)).passed


MOVE = Done(100.0, "migrate", "decode-1", role="decode", target="decode")


def moving(asked: dict[str, int], faults: tuple[Done, ...], **more: int) -> Verdict:
    """Of a run that asked for moves, which came to this; `more` were made for the cluster's own reasons."""
    scenario = hitting(None).model_copy(update={"faults": (Fault(kind="migrate"),)})
    aftermath = Aftermath(moves=Counter(asked) + Counter(more), asked=asked)
    return verdict([UNDER_WAY], faults=faults, aftermath=aftermath, scenario=scenario)


@pytest.mark.parametrize(
    ("asked", "found"),
    [({"aborted": 80}, "80 aborted"), ({}, "none came to an end")],
    ids=["aborted", "none"],
)
def test_mutant_a_run_in_which_no_move_was_committed_fails(asked: dict[str, int], found: str) -> None:
    told = moving(asked, (MOVE,) * 80, committed=5)
    assert told.failures == (f"no move that was asked for was committed ({found})",)
    assert told.moves["committed"] == 5


def test_of_moves_that_were_asked_for_one_must_be_committed() -> None:
    missed = replace(MOVE, missed="the request has ended")
    assert moving({"aborted": 79, "committed": 1}, (MOVE,) * 80).passed
    assert moving({"committed": 1}, (missed, MOVE, missed)).passed
    told = moving({}, (missed, missed))
    assert told.failures == ("migrate decode: not carried out even once: the request has ended",)


ASKED = {"n": 1, "logprobs": 2}
LOG = [Token("a", -1.0, {"a": -1.0, "b": -1.5}), Token("b", -0.5, {"b": -0.5, "a": -2.0})]


def logged(number: int = 0, log: list[Token] = LOG, **fields: Any) -> Answer:
    return replace(answer(number, **fields), ask=Ask(number, f"n-{number}", ASKED), logs={0: list(log)})


def compared(log: list[Token], bound: float | None = RECOMPUTED) -> Verdict:
    scenario = SCENARIO.model_copy(update={"load": Load()})
    return judge(scenario, [logged()], [logged(log=log)], [KILL], bound=bound)


def other(**fields: Any) -> list[Token]:
    """The first of the two tokens is another."""
    return [replace(LOG[0], **fields), LOG[1]]


def test_log_probabilities_that_are_the_same_pass_and_are_counted() -> None:
    told = compared(LOG, 0.0)
    assert told.passed
    assert (told.compared, told.apart, told.bound) == (2, 0.0, 0.0)


@pytest.mark.parametrize(
    ("log", "what"),
    [
        (other(text="c"), "tokens"),
        (LOG[:1], "tokens"),
        ([], "tokens"),
        ([*LOG, LOG[1]], "tokens"),
        (other(logprob=-1.0002), "log-probabilities"),
        (other(top={"a": -1.0, "b": -1.5002}), "log-probabilities"),
        (other(top={"a": -1.0, "c": -1.4}), "log-probabilities"),
        (other(top={"a": -1.0}), "log-probabilities"),
    ],
)
def test_mutant_another_token_or_log_probability_is_a_change(log: list[Token], what: str) -> None:
    told = compared(log)
    assert told.unlike == {what: 1}
    assert told.failures[0] == f"changed: 1 (1 {what}), and not more than 0 were expected"


def test_what_was_computed_again_may_differ_in_its_last_bits_unless_it_is_exact() -> None:
    near = other(logprob=-1.00005, top={"a": -1.00005, "c": -1.50003})
    told = compared(near)
    assert told.passed
    assert told.apart == pytest.approx(5e-5)
    assert not compared(near, 0.0).passed
    assert (bound_of("float32", exact=False), bound_of("float32", exact=True)) == (1e-4, 0.0)
    assert bound_of("float32+int8", exact=False) == 1e-4


def test_of_fewer_bits_only_the_tokens_are_compared_and_the_verdict_says_so() -> None:
    bound = bound_of("bfloat16", exact=False)
    told = compared(other(logprob=-2.0), bound)
    assert told.passed
    assert (told.compared, told.bound) == (0, None)
    assert not compared(other(text="c"), bound).passed
    assert bound_of("bfloat16", exact=True) == 0.0


def test_a_run_in_which_no_log_probability_was_compared_fails() -> None:
    scenario = SCENARIO.model_copy(update={"load": Load()})
    assert verdict([answer()], scenario=scenario).failures == ("no log-probabilities were compared",)


def test_the_tokens_of_an_answer_are_let_go_once_they_are_compared() -> None:
    one = logged()
    verdict([one])
    assert one.logs == {}
    assert one.likeness is not None


def test_log_probabilities_that_were_asked_for_must_come() -> None:
    asked = Answer(Ask(0, "x", ASKED))
    logs = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0, "b": -1.5}]}
    choice = {"index": 0, "text": "a", "finish_reason": None}
    _event(asked, {"choices": [choice | {"logprobs": logs}]}, "cmpl-x:1", "")
    assert (asked.logs, asked.error) == ({0: LOG[:1]}, "")
    _event(asked, {"choices": [choice | {"logprobs": None}]}, "cmpl-x:2", "cmpl-x:1")
    assert asked.error == "it was asked for log-probabilities and has none"
