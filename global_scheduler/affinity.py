"""Where the KV of a prompt's beginning, or an adapter, is likely to be: what was sent where, the last first.

    prompt ─▶ keys of its blocks, each over all before it ─▶ key ─▶ the instances that were sent it

Instances tell nothing of their caches: who was sent a prompt has its blocks until as many others as its pool
holds were sent after them. A wrong guess costs a prefill that would have been needed anyway.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b

KEY_TOKENS = 64
"""Tokens of one key: a multiple of every block size, and few enough keys for long prompts."""

MOST_KEYS = 512
"""Keys of one request: the beginning of 32,768 tokens. What follows is not looked for."""


class PrefixKeys:
    """The `prefix_keys` of a prompt, and of what goes on from it: the prompt is read once, 0.2 ms for 1,000
    tokens."""

    def __init__(self, prompt: Sequence[int], salt: str = "") -> None:
        whole = KEY_TOKENS * min(len(prompt) // KEY_TOKENS, MOST_KEYS)
        self._digest = blake2b(salt.encode(), digest_size=8)
        self._rest = tuple(prompt[whole : whole + KEY_TOKENS])
        self.keys = _keys(self._digest, prompt[:whole])

    def then(self, output: Sequence[int]) -> tuple[int, ...]:
        """Of the prompt with so many tokens behind it."""
        room = KEY_TOKENS * (MOST_KEYS - len(self.keys))
        return self.keys + _keys(self._digest.copy(), (*self._rest, *output[:room])[:room])


def prefix_keys(tokens: Sequence[int], salt: str = "") -> tuple[int, ...]:
    """A 64-bit key for each whole run of KEY_TOKENS tokens, the same in every process."""
    return PrefixKeys(tokens, salt).keys


def _keys(digest: blake2b, tokens: Sequence[int]) -> tuple[int, ...]:
    """Of all whole runs of `tokens`, which follow what `digest` has read."""
    keys = []
    for end in range(KEY_TOKENS, len(tokens) + 1, KEY_TOKENS):
        digest.update(array("q", tokens[end - KEY_TOKENS : end]).tobytes())
        keys.append(int.from_bytes(digest.copy().digest(), "little"))
    return tuple(keys)


def adapter_key(adapter: str) -> int:
    """The key under which an adapter is remembered."""
    return int.from_bytes(blake2b(adapter.encode(), digest_size=8, person=b"adapter").digest(), "little")


class AffinityIndex:
    """Bounded: of each instance as many keys as it can hold, the least recently sent forgotten first."""

    def __init__(self) -> None:
        self._held: dict[str, OrderedDict[int, None]] = {}
        self._where: dict[int, set[str]] = {}

    def sent(self, instance: str, keys: Sequence[int], most: int) -> None:
        """`instance`, which can hold `most` keys, was sent a request with these."""
        held = self._held.setdefault(instance, OrderedDict())
        # Backwards: a cache drops the end of a prompt before its beginning.
        for key in reversed(keys):
            if key in held:
                held.move_to_end(key)
            else:
                held[key] = None
                self._where.setdefault(key, set()).add(instance)
        while len(held) > most:
            key, _ = held.popitem(last=False)
            self._drop(key, instance)

    def forget(self, instance: str) -> None:
        """The instance is gone, and its cache with it."""
        for key in self._held.pop(instance, ()):
            self._drop(key, instance)

    def has(self, key: int) -> frozenset[str]:
        return frozenset(self._where.get(key, ()))

    def hits(self, keys: Sequence[int]) -> Mapping[str, int]:
        """Tokens of the prompt's beginning that each instance is likely to have; only those with any."""
        found: dict[str, int] = {}
        alive: set[str] | None = None
        for number, key in enumerate(keys, 1):
            there = self._where.get(key)
            alive = there if alive is None else alive & there if there else None
            if not alive:
                break
            for instance in alive:
                found[instance] = number * KEY_TOKENS
        return found

    def _drop(self, key: int, instance: str) -> None:
        there = self._where[key]
        there.discard(instance)
        if not there:
            del self._where[key]
