"""A sequence knows its tokens by position and changes phase only along the arrows."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.sequence import LEGAL, Epoch, Phase, Sequence
from tests.engine.toy import request


@given(st.lists(st.integers(0, 99), max_size=9), st.lists(st.integers(0, 99), max_size=9), st.data())
def test_tokens_by_position_are_those_of_prompt_then_output(
    first: list[int], then: list[int], data: st.DataObject
) -> None:
    sequence = Sequence(request("a", first), output=then)
    start = data.draw(st.integers(0, len(sequence)))
    stop = data.draw(st.integers(start, len(sequence)))
    assert sequence.tokens(start, stop) == [*first, *then][start:stop]


@pytest.mark.parametrize(("old", "new"), list(itertools.product(Phase, Phase)), ids=lambda phase: phase.value)
def test_only_the_drawn_phase_changes_are_possible(old: Phase, new: Phase) -> None:
    sequence = Sequence(request("a", [1]), phase=old)
    if new in LEGAL[old]:
        sequence.become(new)
        assert sequence.phase is new
    else:
        with pytest.raises(AssertionError, match=f"{old.value} -> {new.value}"):
            sequence.become(new)


def test_nothing_comes_after_finished() -> None:
    assert LEGAL[Phase.FINISHED] == frozenset()


def test_epochs_compare_by_attempt_then_by_move() -> None:
    assert sorted([Epoch(1, 0), Epoch(0, 2), Epoch(0, 1)]) == [Epoch(0, 1), Epoch(0, 2), Epoch(1, 0)]
