"""Affinity: prompts go where their beginnings are, as long as that is worth it, and the memory is bounded."""

from __future__ import annotations

from random import Random

import pytest

from engine.status import InstanceStatus
from global_scheduler.affinity import KEY_TOKENS, MOST_KEYS, AffinityIndex, PrefixKeys, prefix_keys
from global_scheduler.placement import PlacementSettings
from global_scheduler.scheduler import Scheduler, SchedulerSettings
from global_scheduler.view import Summary

LONG = tuple(range(10 * KEY_TOKENS))


def scheduler(ranking: str = "affinity", blocks: int = 1000, **more: int) -> Scheduler:
    made = Scheduler(SchedulerSettings(PlacementSettings(ranking=ranking)))
    for role in ("prefill", "decode"):
        for number in range(3):
            name = f"{role}-{number}"
            made.observe(InstanceStatus(name, role, blocks_total=blocks, **more), 0.0)
    return made


def ask(name: str, prompt: tuple[int, ...], **more: str) -> Summary:
    return Summary(name, len(prompt), 16, prefix=prefix_keys(prompt), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [0, 1, KEY_TOKENS - 1, KEY_TOKENS, KEY_TOKENS + 1, 5 * KEY_TOKENS + 7])
def test_a_key_covers_everything_before_it(length: int) -> None:
    keys = prefix_keys(LONG[:length])
    assert len(keys) == length // KEY_TOKENS
    assert prefix_keys(LONG)[: len(keys)] == keys
    for at in range(len(keys)):
        changed = list(LONG)
        changed[at * KEY_TOKENS] += 1
        assert prefix_keys(changed)[:at] == keys[:at]
        assert not set(prefix_keys(changed)[at:]) & set(keys)


@pytest.mark.parametrize("prompt", [0, 1, KEY_TOKENS - 1, KEY_TOKENS, 5 * KEY_TOKENS + 7])
@pytest.mark.parametrize("output", [0, 1, KEY_TOKENS - 7, KEY_TOKENS, 3 * KEY_TOKENS + 1])
def test_what_goes_on_from_a_prompt_has_the_keys_of_both_together(prompt: int, output: int) -> None:
    said = tuple(range(prompt + output))
    keys = PrefixKeys(said[:prompt], "salt")
    assert keys.then(said[prompt:]) == prefix_keys(said, "salt")
    assert keys.then((7,) * output) == prefix_keys(said[:prompt] + (7,) * output, "salt"), "of another choice"


@pytest.mark.parametrize("over", [-KEY_TOKENS - 1, -1, 0, 1])
def test_no_more_keys_than_that_are_made(over: int) -> None:
    prompt = tuple(range(MOST_KEYS * KEY_TOKENS + over))
    keys = PrefixKeys(prompt).then(range(3 * KEY_TOKENS))
    assert keys == prefix_keys((*prompt, *range(3 * KEY_TOKENS)))
    assert len(keys) == MOST_KEYS


def test_another_salt_shares_nothing() -> None:
    assert not set(prefix_keys(LONG, "a")) & set(prefix_keys(LONG, "b"))


def test_a_prompt_that_goes_on_goes_where_it_began() -> None:
    made = scheduler()
    first = made.place(ask("a", LONG), 0.0)
    made.place(ask("b", tuple(range(5000, 5200))), 0.0)
    again = made.place(ask("c", LONG + (1,) * 200), 20.0)
    assert (again.prefill, again.decode) == (first.prefill, first.decode)
    assert f"{10 * KEY_TOKENS} prompt tokens cached" in again.reason
    assert again.compute == 200


def test_what_is_cached_where_it_is_decoded_needs_no_handoff() -> None:
    made = scheduler()
    first = made.place(ask("a", LONG), 0.0)
    again = made.place(ask("b", LONG + (1,) * 20), 20.0)
    assert again.local and again.decode == first.decode
    assert "20 prompt tokens without a cache are prefilled where they are decoded" in again.reason


def test_a_long_queue_outweighs_the_cache() -> None:
    made = scheduler()
    first = made.place(ask("a", LONG), 0.0)
    busy = InstanceStatus(first.prefill, "prefill", blocks_total=1000, waiting=9, waiting_tokens=2000)
    made.observe(busy, 20.0)
    for name in {"prefill-0", "prefill-1", "prefill-2"} - {first.prefill}:
        made.observe(InstanceStatus(name, "prefill", blocks_total=1000), 20.0)
    assert made.place(ask("b", LONG + (1,) * 200), 20.0).prefill != first.prefill


def test_a_full_instance_is_not_crowded_further_for_its_cache() -> None:
    made = scheduler()
    first = made.place(ask("a", LONG), 0.0)
    for name in ("decode-0", "decode-1", "decode-2"):
        full = {"running": 20, "blocks_used": 900} if name == first.decode else {}
        made.observe(InstanceStatus(name, "decode", blocks_total=1000, **full), 20.0)
    assert made.place(ask("b", LONG + (1,) * 20), 20.0).decode != first.decode


def test_mutant_freeness_does_not_look_at_the_cache() -> None:
    """All instances are alike but for what they have cached: freeness alone takes the first of them."""
    made = scheduler("freeness")
    made.place(ask("x", LONG), 0.0)
    made.place(ask("a", tuple(range(9000, 9640))), 0.0)
    assert made.place(ask("c", tuple(range(9000, 9640)) + (1,) * 200), 20.0).prefill == "prefill-0"
    made = scheduler("affinity")
    made.place(ask("x", LONG), 0.0)
    made.place(ask("a", tuple(range(9000, 9640))), 0.0)
    assert made.place(ask("c", tuple(range(9000, 9640)) + (1,) * 200), 20.0).prefill == "prefill-1"


def test_an_adapter_goes_where_it_was_loaded() -> None:
    made = scheduler()
    names = ["red", "green", "blue"]
    first = {
        name: made.place(ask(name, (number,) * 100, adapter=name), 0.0).prefill
        for number, name in enumerate(names)
    }
    assert len(set(first.values())) == 3
    for number, name in enumerate(names * 2):
        placed = made.place(ask(f"again-{number}", (9 + number,) * 100, adapter=name), 20.0 + 20 * number)
        assert placed.prefill == first[name] and "the adapter" in placed.reason


def test_a_dead_instance_has_nothing_cached() -> None:
    made = scheduler()
    first = made.place(ask("a", LONG), 0.0)
    made.forget(first.prefill)
    made.observe(InstanceStatus(first.prefill, "prefill", blocks_total=1000), 1.0)
    assert first.prefill not in made.placer.index.hits(prefix_keys(LONG))


def test_the_index_holds_no_more_than_the_caches() -> None:
    index, rng = AffinityIndex(), Random(1)
    for _ in range(500):
        prompt = [rng.randrange(4)] * rng.randrange(1, 2000)
        index.sent(f"i-{rng.randrange(5)}", prefix_keys(prompt + [rng.random() < 0.5] * 64), 20)
        assert all(len(held) <= 20 for held in index._held.values())
        where = {(name, key) for key, names in index._where.items() for name in names}
        assert where == {(name, key) for name, held in index._held.items() for key in held}


def test_hits_are_those_of_a_search_without_an_index() -> None:
    index, rng, sent = AffinityIndex(), Random(2), []
    for _ in range(200):
        keys = prefix_keys([rng.randrange(2) for _ in range(rng.randrange(1, 4)) for _ in range(KEY_TOKENS)])
        hits = {
            name: KEY_TOKENS
            * max(
                next(
                    (n for n, (a, b) in enumerate(zip(keys, k, strict=False)) if a != b),
                    min(len(keys), len(k)),
                )
                for who, k in sent
                if who == name
            )
            for name in {who for who, _ in sent}
        }
        assert index.hits(keys) == {name: tokens for name, tokens in hits.items() if tokens}
        who = f"i-{rng.randrange(4)}"
        index.sent(who, keys, 10_000)
        sent.append((who, keys))
