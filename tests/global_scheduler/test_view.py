"""The view: statuses, plus what was just sent, which is forgotten when it shows up in a status."""

from __future__ import annotations

import pickle

from engine.status import InstanceStatus
from global_scheduler.view import ClusterView, Load, Share


def status(name: str = "decode-0", **numbers: int) -> InstanceStatus:
    given = {"blocks_total": 100, "blocks_free": 100, "block_size": 16} | numbers
    return InstanceStatus(instance=name, role=name.partition("-")[0], **given)


def only(view: ClusterView, now: float = 0.0) -> Load:
    (load,) = view.loads(now)
    return load


def test_queued_and_reserved_blocks_are_demand_and_cached_ones_are_not() -> None:
    view = ClusterView()
    view.observe(status(blocks_used=10, blocks_reserved=5, blocks_cached=40, waiting_tokens=33), 0.0)
    assert only(view).demand == 10 + 5 + 3
    assert only(view).free == 82


def test_a_prompt_that_is_being_read_is_to_be_computed_still_but_asks_for_no_more_blocks() -> None:
    view = ClusterView()
    view.observe(status(blocks_used=100, running=1, prefill_tokens=1500, waiting_tokens=32), 0.0)
    load = only(view)
    assert (load.queued_tokens, load.queued, load.demand) == (1532, 0, 102)


def test_what_was_sent_counts_at_once() -> None:
    view = ClusterView()
    view.observe(status(), 0.0)
    view.send("a", {"decode-0": Share(prefill=100, hold=100)}, 0.0)
    load = only(view)
    assert (load.demand, load.queued_tokens, load.queued, load.requests) == (7, 100, 1, 1)


def test_a_share_without_prefill_does_not_queue() -> None:
    view = ClusterView()
    view.observe(status(), 0.0)
    view.send("a", {"decode-0": Share(prefill=0, hold=100)}, 0.0)
    load = only(view)
    assert (load.demand, load.queued_tokens, load.queued, load.requests) == (7, 0, 0, 1)


def test_a_status_without_new_arrivals_forgets_nothing() -> None:
    view = ClusterView()
    view.observe(status(arrivals=3), 0.0)
    view.send("a", {"decode-0": Share(16, 16)}, 0.1)
    view.observe(status(arrivals=3), 0.2)
    assert only(view).requests == 1


def test_each_arrival_covers_the_oldest_that_was_sent() -> None:
    view = ClusterView()
    view.observe(status(arrivals=3), 0.0)
    view.send("a", {"decode-0": Share(16, 16)}, 0.1)
    view.send("b", {"decode-0": Share(32, 32)}, 0.1)
    view.observe(status(arrivals=4, running=1, blocks_used=1), 0.2)
    load = only(view)
    assert (load.requests, load.queued_tokens, load.demand) == (2, 32, 1 + 2)


def test_more_arrivals_than_were_sent_do_no_harm() -> None:
    view = ClusterView()
    view.observe(status(arrivals=0), 0.0)
    view.send("a", {"decode-0": Share(16, 16)}, 0.1)
    view.observe(status(arrivals=9), 0.2)
    assert only(view).requests == 0


def test_an_instance_that_began_anew_has_nothing_on_its_way() -> None:
    view = ClusterView()
    view.observe(status(arrivals=5), 0.0)
    view.send("a", {"decode-0": Share(16, 16)}, 0.1)
    view.observe(status(arrivals=0), 0.2)
    assert only(view).requests == 0


def test_what_never_arrives_is_forgotten_in_time() -> None:
    view = ClusterView(settle=10.0)
    view.observe(status(), 0.0)
    view.send("a", {"decode-0": Share(16, 16)}, 0.0)
    assert only(view, 9.0).requests == 1
    assert only(view, 10.5).requests == 0


def test_placing_a_request_again_voids_its_earlier_placement() -> None:
    view = ClusterView()
    view.observe(status("decode-0"), 0.0)
    view.observe(status("decode-1"), 0.0)
    view.send("a", {"decode-0": Share(16, 16)}, 0.0)
    view.send("a", {"decode-1": Share(16, 16)}, 0.1)
    assert [load.requests for load in view.loads(0.1)] == [0, 1]


def test_what_it_keeps_does_not_grow_with_the_requests_that_there_have_been() -> None:
    view = ClusterView(settle=10.0)
    sizes = []
    for second in range(100):
        for number in range(100):
            view.send(f"{second}-{number}", {"decode-0": Share(16, 16)}, float(second))
        view.observe(status(arrivals=100 * (second + 1)), float(second))
        sizes.append(len(pickle.dumps(view)))
    assert sizes[-1] < 1.1 * sizes[20]


def test_a_status_that_is_older_than_the_last_is_dropped() -> None:
    view = ClusterView()
    view.observe(status(running=2), 2.0)
    view.observe(status(running=9), 1.0)
    assert only(view, 2.0).requests == 2


def test_an_instance_without_news_is_stale() -> None:
    view = ClusterView(stale=3.0)
    view.observe(status(), 0.0)
    assert not only(view, 2.9).stale
    assert only(view, 3.1).stale


def test_a_cordon_survives_the_next_status() -> None:
    view = ClusterView()
    view.observe(status(), 0.0)
    view.cordon("decode-0")
    view.observe(status(), 1.0)
    assert only(view, 1.0).cordoned


def test_a_forgotten_instance_is_gone() -> None:
    view = ClusterView()
    view.observe(status(), 0.0)
    view.forget("decode-0")
    view.forget("decode-0")
    assert view.loads(0.0) == []
