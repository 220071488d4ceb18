"""Who may come in: not too many, no stale epoch, no session twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.errors import Draining, Fenced, Overloaded
from engine.sequence import Epoch
from migration.lobby import REMEMBERED, Lobby


class Session:
    def __init__(self) -> None:
        self.cancelled = 0

    def cancel(self, then: Callable[[], None]) -> bool:
        self.cancelled += 1
        then()
        return True


def test_one_too_many_is_refused_until_another_leaves() -> None:
    lobby = Lobby(1)
    lobby.enter("s1", "a", Epoch(), Session().cancel)
    with pytest.raises(Overloaded, match="max_sessions"):
        lobby.enter("s2", "b", Epoch(), Session().cancel)
    lobby.leave("s1", "a")
    lobby.enter("s3", "b", Epoch(), Session().cancel)


def test_an_older_epoch_of_a_request_is_refused_even_when_the_newer_one_has_left() -> None:
    lobby = Lobby(2)
    lobby.enter("s1", "a", Epoch(1, 0), Session().cancel)
    lobby.leave("s1", "a")
    with pytest.raises(Fenced):
        lobby.enter("s2", "a", Epoch(0, 3), Session().cancel)


def test_a_newer_epoch_ends_the_movement_of_the_older_one() -> None:
    lobby, older = Lobby(1), Session()
    lobby.enter("s1", "a", Epoch(0, 0), older.cancel)
    lobby.enter("s2", "a", Epoch(1, 0), Session().cancel)
    assert older.cancelled == 1


def test_what_the_older_one_leaves_behind_does_not_concern_the_newer() -> None:
    lobby, newer = Lobby(1), Session()
    lobby.enter("s1", "a", Epoch(0, 0), Session().cancel)
    lobby.enter("s2", "a", Epoch(1, 0), newer.cancel)
    lobby.leave("s1", "a")
    assert lobby.cancel("a", lambda: None)
    assert newer.cancelled == 1


@pytest.mark.parametrize("left", [False, True])
def test_a_session_or_an_epoch_does_not_come_twice(left: bool) -> None:
    lobby = Lobby(2)
    lobby.enter("s1", "a", Epoch(), Session().cancel)
    if left:
        lobby.leave("s1", "a")
    with pytest.raises(Fenced):
        lobby.enter("s1", "a", Epoch(), Session().cancel)


def test_nobody_comes_in_after_close() -> None:
    lobby = Lobby(2)
    lobby.close()
    with pytest.raises(Draining):
        lobby.enter("s1", "a", Epoch(), Session().cancel)


def test_cancel_says_whether_somebody_is_on_the_way() -> None:
    lobby, session, after = Lobby(1), Session(), []
    assert not lobby.cancel("a", lambda: after.append(1))
    lobby.enter("s1", "a", Epoch(), session.cancel)
    assert lobby.cancel("a", lambda: after.append(2))
    assert (session.cancelled, after) == (1, [2])


def test_what_is_remembered_is_bounded() -> None:
    lobby = Lobby(1)
    for number in range(REMEMBERED + 10):
        lobby.enter(f"s{number}", f"r{number}", Epoch(), Session().cancel)
        lobby.leave(f"s{number}", f"r{number}")
    assert len(lobby._over) == len(lobby._newest) == REMEMBERED
