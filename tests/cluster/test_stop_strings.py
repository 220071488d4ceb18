"""Stop strings in a stream: found whatever the pieces, and never shown half."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.stop_strings import StopMatcher

LETTERS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple)


def cut(text: str, stops: Sequence[str], *, include: bool = False) -> tuple[str, str | None]:
    """The definition: the stop string that ends first, the longest of those that end there."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end if include else end - len(stop)], stop
    return text, None


def streamed(pieces: Sequence[str], matcher: StopMatcher) -> str:
    return "".join(matcher.feed(piece) for piece in pieces) + matcher.flush()


@given(pieces=st.lists(LETTERS, max_size=6), stops=STOPS, include=st.booleans())
def test_the_text_depends_on_no_cut(pieces: list[str], stops: tuple[str, ...], include: bool) -> None:
    matcher = StopMatcher(stops, include=include)
    assert (streamed(pieces, matcher), matcher.matched) == cut("".join(pieces), stops, include=include)


@given(pieces=st.lists(LETTERS, max_size=6), stops=STOPS)
def test_what_was_shown_is_never_taken_back(pieces: list[str], stops: tuple[str, ...]) -> None:
    whole, _ = cut("".join(pieces), stops)
    matcher = StopMatcher(stops)
    shown = ""
    for piece in pieces:
        shown += matcher.feed(piece)
        assert whole.startswith(shown)


@given(pieces=st.lists(LETTERS, max_size=6), stops=STOPS)
def test_no_more_is_held_back_than_may_become_a_stop_string(
    pieces: list[str], stops: tuple[str, ...]
) -> None:
    matcher = StopMatcher(stops)
    shown = ""
    for number, piece in enumerate(pieces):
        shown += matcher.feed(piece)
        if matcher.matched is not None:
            return
        held = "".join(pieces[: number + 1])[len(shown) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_a_matcher_that_looks_at_single_pieces_only_fails_the_definition() -> None:
    class PerPiece(StopMatcher):
        def feed(self, piece: str, *, armed: bool = True) -> str:
            fresh = StopMatcher(("ab",))
            shown = fresh.feed(piece) + fresh.flush()
            self.matched = self.matched or fresh.matched
            return shown

    assert streamed(["a", "b"], PerPiece(("ab",))) != cut("ab", ["ab"])[0]


def test_an_ending_may_stand_across_any_number_of_pieces() -> None:
    matcher = StopMatcher(("<|end|>",))
    assert streamed(["x<", "|", "e", "nd", "|", ">y"], matcher) == "x"
    assert matcher.matched == "<|end|>"


def test_without_stop_strings_everything_passes_at_once() -> None:
    assert StopMatcher(()).feed("abc") == "abc"


def test_a_match_that_ends_before_the_minimum_does_not_count() -> None:
    matcher = StopMatcher(("b",))
    assert matcher.feed("ab", armed=False) + matcher.feed("ab") == "aba"
    assert matcher.matched == "b"


def test_a_match_may_begin_before_the_minimum() -> None:
    matcher = StopMatcher(("ab",))
    assert matcher.feed("a", armed=False) + matcher.feed("b") == ""
    assert matcher.matched == "ab"


@pytest.mark.parametrize("include", [False, True])
def test_nothing_follows_a_match(include: bool) -> None:
    matcher = StopMatcher(("b",), include=include)
    matcher.feed("ab")
    assert matcher.feed("more") + matcher.flush() == ""
