"""Finds stop strings in a growing text and holds back whatever may still become one."""

from __future__ import annotations


class StopMatcher:
    """Reads a text piece by piece; the result depends on the text alone, never on where it was cut.

    The stop string that counts is the one whose last character comes first; of several that end there, the
    longest.
    `include` leaves it at the end of the text, otherwise the text ends before it.
    """

    def __init__(self, stops: tuple[str, ...], *, include: bool = False) -> None:
        self._stops = sorted({stop for stop in stops if stop}, key=len, reverse=True)
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def feed(self, piece: str, *, armed: bool = True) -> str:
        """Take the next piece, give the text that is certain: "" after a stop string, which `matched` is.

        With `armed` false no stop string may end within this piece (the minimum length is not reached yet).
        """
        if self.matched is not None or not piece:
            return ""
        if not self._stops:
            return piece
        text = self._held + piece
        if armed:
            for end in range(len(self._held) + 1, len(text) + 1):
                for stop in self._stops:
                    if text.endswith(stop, 0, end):
                        self.matched, self._held = stop, ""
                        return text[: end if self._include else end - len(stop)]
        keep = self._undecided(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text held back, for an end that no stop string made."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins, short of the whole of it."""
        longest = len(self._stops[0]) - 1
        for length in range(min(longest, len(text)), 0, -1):
            tail = text[len(text) - length :]
            if any(len(stop) > length and stop.startswith(tail) for stop in self._stops):
                return length
        return 0
