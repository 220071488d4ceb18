"""A choice that ends while its request is paused for the last copy: its blocks are another's before they are
read, so that the request stays where it is."""

from __future__ import annotations

import threading

import pytest

from engine.core import EngineCore
from engine.sequence import Phase
from migration.moved import Moved
from migration.movement import Movement
from migration.session import Bounds
from migration.source import TORN
from tests.engine.toy import alone, prompt, request
from tests.migration.mesh import Mesh, mesh
from tests.migration.pair import BOUND

AT_ONCE = Bounds(last_blocks=1000)
"""A request is paused before anything of it is copied."""


class Gate:
    """Stops the first copy out of d0 until it is opened: the request is paused by then."""

    def __init__(self, all_: Mesh) -> None:
        self.reached, self._go = threading.Event(), threading.Event()
        all_.nodes["d0"].engine.store.before_gather = self._wait

    def _wait(self) -> None:
        self.reached.set()
        assert self._go.wait(BOUND)

    def open(self) -> None:
        self._go.set()


def finish_paused(core: EngineCore) -> int:
    """A stop string has ended choice 0. How many tokens it had."""
    (ended,) = [one for one in core.sequences("r") if one.choice == 0]
    assert ended.phase is Phase.PAUSED
    length = len(ended.output)
    assert core.finish("r", 0, length)
    return length


def overwrite(all_: Mesh) -> None:
    """Another request takes every block that is free at d0, and computes in it."""
    core = all_.nodes["d0"].engine.core
    room = all_.nodes["d0"].engine.loop.call(lambda _: core.pool.available).result(BOUND)
    greedy = request("greedy", prompt(4 * (room - 2), 5), 2)
    all_.start("d0", greedy)
    assert all_.home.output(greedy) == alone(greedy)


def a_choice_ends_while_it_is_paused() -> Moved:
    """Fails with another output than that of its prompt if KV is found that is not that of its tokens."""
    with mesh(blocks=64, pace=0.002, bounds=AT_ONCE) as all_:
        one = request("r", prompt(21), 60, n=2)
        all_.start("d0", one)
        for choice in range(2):
            all_.until(one, 30, choice)
        gate = Gate(all_)
        move = all_.move(one, "d0", "d1")
        assert gate.reached.wait(BOUND)
        length = all_.nodes["d0"].engine.loop.call(finish_paused).result(BOUND)
        overwrite(all_)
        gate.open()
        moved = move.result(BOUND)
        told = (*one.prompt, *alone(one)[:length])
        for where in ("d0", "d1"):
            after = request(f"after-{where}", told, 4)
            all_.start(where, after)
            assert all_.home.output(after) == alone(after), "what follows the tokens of the ended choice"
        assert all_.home.output(one, 1) == alone(one, 1)
        return moved


def test_a_request_of_which_a_choice_ends_while_it_is_paused_stays() -> None:
    assert a_choice_ends_while_it_is_paused().outcome == f"aborted: {TORN}"


def test_a_commit_of_what_is_torn_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Movement, "torn", property(lambda _: False))
    with pytest.raises(AssertionError, match="what follows the tokens of the ended choice"):
        a_choice_ends_while_it_is_paused()
