"""Placement: the emptiest prefill queue, the freest decode instance, and what happens when a pool is away."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ContextLengthExceeded, NoDecodeInstance, NoPrefillInstance, Overloaded
from engine.status import InstanceStatus
from global_scheduler.freeness import freeness
from global_scheduler.placement import PlacementSettings, Placer
from global_scheduler.scheduler import Scheduler, SchedulerSettings
from global_scheduler.view import ClusterView, Load, Summary

SETTINGS = PlacementSettings(local_prefill_tokens=32)


def status(name: str, **numbers: int) -> InstanceStatus:
    given = {"blocks_total": 100, "block_size": 16} | numbers
    return InstanceStatus(instance=name, role=name.partition("-")[0], **given)


def view_of(*statuses: InstanceStatus) -> ClusterView:
    view = ClusterView()
    for one in statuses:
        view.observe(one, 0.0)
    return view


def ask(prompt: int = 100, *, name: str = "r", **more: object) -> Summary:
    return Summary(id=name, prompt_tokens=prompt, max_tokens=10, **more)  # type: ignore[arg-type]


def scheduler_of(*statuses: InstanceStatus, **settings: int) -> Scheduler:
    scheduler = Scheduler(SchedulerSettings(placement=SETTINGS, **settings))  # type: ignore[arg-type]
    for one in statuses:
        scheduler.observe(one, 0.0)
    return scheduler


def test_prefill_goes_where_the_fewest_tokens_wait() -> None:
    view = view_of(
        status("prefill-0", waiting=1, waiting_tokens=500),
        status("prefill-1", waiting=3, waiting_tokens=300),
        status("decode-0"),
    )
    assert Placer(SETTINGS).place(view, ask(), 0.0).prefill == "prefill-1"


@pytest.mark.parametrize("ranking", ["freeness", "affinity"])
def test_a_prompt_that_is_being_read_is_waited_for_like_one_in_the_queue(ranking: str) -> None:
    view = view_of(
        status("prefill-0", running=1, prefill_tokens=30_000 - 256, blocks_used=16),
        status("prefill-1", waiting=1, waiting_tokens=100),
        status("decode-0"),
    )
    placement = Placer(replace(SETTINGS, ranking=ranking)).place(view, ask(200), 0.0)
    assert placement.prefill == "prefill-1"
    assert "(100)" in placement.reason


def test_decode_goes_where_most_blocks_are_left_for_each_request() -> None:
    view = view_of(
        status("prefill-0"),
        status("decode-0", running=1, blocks_used=60),
        status("decode-1", running=9, blocks_used=30),
    )
    assert Placer(SETTINGS).place(view, ask(), 0.0).decode == "decode-0"


def test_a_short_prompt_is_prefilled_where_it_is_decoded() -> None:
    view = view_of(status("prefill-0"), status("decode-0"))
    placement = Placer(SETTINGS).place(view, ask(32), 0.0)
    assert (placement.prefill, placement.decode) == ("decode-0", "decode-0")
    assert placement.reason == (
        "32 prompt tokens are prefilled where they are decoded; decode-0 is freest (100.0 blocks per request)"
    )
    assert Placer(SETTINGS).place(view, ask(33), 0.0).prefill == "prefill-0"


def test_without_a_prefill_instance_the_decode_instance_prefills() -> None:
    placement = Placer(SETTINGS).place(view_of(status("decode-0")), ask(), 0.0)
    assert placement.local
    assert "no prefill instance" in placement.reason


def test_without_a_decode_instance_the_prefill_instance_decodes() -> None:
    placement = Placer(SETTINGS).place(view_of(status("prefill-0")), ask(), 0.0)
    assert placement.prefill == placement.decode == "prefill-0"
    assert "no decode instance" in placement.reason


def test_with_no_instance_at_all_it_says_that_none_is_ready() -> None:
    with pytest.raises(NoPrefillInstance, match="ready"):
        Placer(SETTINGS).place(ClusterView(), ask(), 0.0)


def test_with_only_a_cordoned_prefill_instance_the_decode_pool_is_missing() -> None:
    view = view_of(status("prefill-0"))
    view.cordon("prefill-0")
    with pytest.raises(NoDecodeInstance, match="draining"):
        Placer(SETTINGS).place(view, ask(), 0.0)


def test_with_both_pools_cordoned_nothing_is_placed() -> None:
    view = view_of(status("prefill-0"), status("decode-0"))
    view.cordon("prefill-0")
    view.cordon("decode-0")
    with pytest.raises(NoPrefillInstance, match="draining"):
        Placer(SETTINGS).place(view, ask(), 0.0)


def test_an_excluded_instance_is_avoided_and_still_taken_as_the_last() -> None:
    view = view_of(status("decode-0"), status("decode-1", running=50, blocks_used=90))
    assert Placer(SETTINGS).place(view, ask(exclude=frozenset({"decode-0"})), 0.0).decode == "decode-1"
    view.forget("decode-1")
    assert Placer(SETTINGS).place(view, ask(exclude=frozenset({"decode-0"})), 0.0).decode == "decode-0"


def test_a_stale_instance_is_avoided_and_still_taken_as_the_last() -> None:
    view = view_of(status("decode-0"), status("decode-1", running=50, blocks_used=90))
    view.observe(status("decode-1", running=50, blocks_used=90), 10.0)
    assert Placer(SETTINGS).place(view, ask(), 10.0).decode == "decode-1"
    view.forget("decode-1")
    assert Placer(SETTINGS).place(view, ask(), 10.0).decode == "decode-0"


def test_an_instance_too_small_for_the_request_is_passed_over() -> None:
    view = view_of(status("decode-0", blocks_total=6), status("decode-1", running=50, blocks_used=90))
    assert Placer(SETTINGS).place(view, ask(), 0.0).decode == "decode-1"


def test_a_request_that_can_never_fit_is_refused_and_told_the_setting() -> None:
    scheduler = scheduler_of(status("prefill-0", blocks_total=6), status("decode-0", blocks_total=6))
    with pytest.raises(ContextLengthExceeded, match=r"engine\.kv_memory"):
        scheduler.place(ask(), 0.0)
    assert scheduler.place(ask(86), 0.0).decode == "decode-0"


def test_full_queues_refuse_a_fresh_request_and_let_a_recovered_one_in() -> None:
    scheduler = scheduler_of(status("prefill-0", waiting=4), status("decode-0", waiting=5), queue_limit=4)
    with pytest.raises(Overloaded, match=r"engine\.queue_limit"):
        scheduler.place(ask(), 0.0)
    assert scheduler.place(ask(attempt=1), 0.0).prefill == "prefill-0"


def spread(scheduler: Scheduler, count: int) -> dict[str, int]:
    counts: dict[str, int] = {}
    for number in range(count):
        placement = scheduler.place(ask(name=str(number)), 0.0)
        for name in {placement.prefill, placement.decode}:
            counts[name] = counts.get(name, 0) + 1
    return counts


IDLE = [status(name) for name in ("prefill-0", "prefill-1", "decode-0", "decode-1")]


def test_quick_requests_spread_before_any_new_status() -> None:
    assert spread(scheduler_of(*IDLE), 4) == {"prefill-0": 2, "prefill-1": 2, "decode-0": 2, "decode-1": 2}


def test_mutant_a_view_that_ignores_what_was_sent_picks_the_same_victim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ClusterView, "send", lambda *_: None)
    assert spread(scheduler_of(*IDLE), 4) == {"prefill-0": 4, "decode-0": 4}


def load_of(**numbers: int) -> Load:
    given: dict[str, int] = {
        "blocks": 100, "block_size": 16, "demand": 0, "queued_tokens": 0, "queued": 0, "requests": 0
    } | numbers  # fmt: skip
    return Load(instance="decode-0", role="decode", **given)  # type: ignore[arg-type]


def test_freeness_is_blocks_per_request() -> None:
    assert freeness(load_of(demand=40, requests=4)) == 15.0
    assert freeness(load_of(demand=40, requests=4), hold=33) == (60 - 3) / 5


def test_freeness_is_negative_when_the_demand_exceeds_the_pool() -> None:
    assert freeness(load_of(demand=140, requests=2)) == -20.0


names = st.sampled_from(["prefill-0", "prefill-1", "decode-0", "decode-1", "decode-2"])
statuses = st.builds(
    lambda name, used, running, waiting, tokens: status(
        name, blocks_used=used, running=running, waiting=waiting, waiting_tokens=tokens
    ),
    names, st.integers(0, 100), st.integers(0, 20), st.integers(0, 20), st.integers(0, 4000),
)  # fmt: skip


@given(
    st.lists(statuses, min_size=1),
    st.sets(names),
    st.sets(names),
    st.integers(1, 1500),
)
def test_a_cordoned_instance_is_never_chosen_whatever_the_load(
    given_statuses: list[InstanceStatus], cordoned: set[str], excluded: set[str], prompt: int
) -> None:
    view = view_of(*given_statuses)
    for name in cordoned:
        view.cordon(name)
    usable = {one.instance for one in given_statuses} - cordoned
    try:
        placement = Placer(SETTINGS).place(view, ask(prompt, exclude=frozenset(excluded)), 0.0)
    except (NoPrefillInstance, NoDecodeInstance):
        assert not usable
        return
    chosen = {placement.prefill, placement.decode}
    assert chosen <= usable
    for role in ("prefill", "decode"):
        if any(name.startswith(role) for name in usable - excluded):
            assert not any(name.startswith(role) for name in chosen & excluded)


@given(st.lists(st.integers(33, 400), min_size=1, max_size=60))
def test_equal_instances_never_differ_by_more_than_one_request_of_tokens(prompts: list[int]) -> None:
    scheduler = scheduler_of(*(status(f"prefill-{n}") for n in range(3)), status("decode-0"))
    tokens = {f"prefill-{n}": 0 for n in range(3)}
    for number, prompt in enumerate(prompts):
        tokens[scheduler.place(ask(prompt, name=str(number)), 0.0).prefill] += prompt
    assert max(tokens.values()) - min(tokens.values()) <= max(prompts)


@given(st.lists(statuses, min_size=1), st.integers(1, 1500))
def test_the_same_view_gives_the_same_placement(given_statuses: list[InstanceStatus], prompt: int) -> None:
    first, second = view_of(*given_statuses), view_of(*given_statuses)
    assert Placer(SETTINGS).place(first, ask(prompt), 0.0) == Placer(SETTINGS).place(second, ask(prompt), 0.0)
