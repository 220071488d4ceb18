"""The least number of tokens that a text can have, known without tokenising it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

_NFC = 4
"""Bytes that become one by Unicode's composition, at most: U+1FBE U+0308 U+0301, 7 bytes, become 2."""


@dataclass(frozen=True, slots=True)
class Floor:
    """`longest`: bytes of a text that one token stands for, at most; infinite where nobody knows.
    `dropped`: bytes that no token stands for, which are left out."""

    longest: float
    dropped: bytes = b""

    def tokens(self, text: str) -> int:
        """A text of so many tokens or more; 0 where nothing is known."""
        if math.isinf(self.longest):
            return 0
        return math.ceil(len(text.encode().translate(None, self.dropped)) / self.longest)


def floor(described: Mapping[str, Any], pieces: Collection[str], spelled: Callable[[str], bytes]) -> Floor:
    """Of a tokenizer.json and its vocabulary without added tokens; `spelled` gives a piece's bytes."""
    splitter, added = described.get("pre_tokenizer"), described.get("added_tokens") or ()
    shrinkage = _shrinkage(described.get("normalizer")) * _shrinkage(splitter)
    tokens, dropped = [token["content"].encode() for token in added], b""
    if "ByteLevel" in _kinds(splitter):
        tokens += map(spelled, pieces)
        known = {token for token in tokens if len(token) == 1}
        dropped = bytes(byte for byte in range(256) if bytes([byte]) not in known)
    else:
        # A text may have the sign for a space itself, so that a piece counts as it is written.
        tokens += [piece.encode() for piece in pieces]
        whole = {f"<0x{byte:02X}>" for byte in range(256)} <= set(pieces)
        if not whole or not described["model"].get("byte_fallback"):
            return Floor(math.inf)  # runs of unknown characters are one token
    if any(token["lstrip"] or token["rstrip"] for token in added) or (dropped and shrinkage > 1):
        return Floor(math.inf)
    return Floor(max(map(len, tokens)) * shrinkage, dropped)


def _shrinkage(stage: Mapping[str, Any] | None) -> float:
    """Bytes of a text that a normalizer or splitter makes into one, at most; infinite where nobody knows."""
    match stage:
        case None | {"type": "ByteLevel" | "Digits" | "Metaspace" | "Prepend"}:
            return 1
        case {"type": "NFC"}:
            return _NFC
        case {"type": "Split", "behavior": behavior} if behavior != "Removed":
            return 1
        case {"type": "Replace", "pattern": {"String": old}, "content": new}:
            return 1 if len(new.encode()) >= len(old.encode()) else math.inf
        case {"type": "Sequence"}:
            return math.prod(map(_shrinkage, _within(stage)))
    return math.inf


def _kinds(stage: Mapping[str, Any] | None) -> set[str]:
    return set() if stage is None else {stage["type"], *(one["type"] for one in _within(stage))}


def _within(stage: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = stage.get("normalizers") or stage.get("pretokenizers") or []
    return found
