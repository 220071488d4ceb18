"""One request of a workload: when it comes, how long its prompt is and how long its answer turns out."""

from __future__ import annotations

from dataclasses import dataclass

PREFIX_BLOCK = 512
"""Tokens of one block of `Arrival.prefix`, as in the Mooncake traces."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """`at` is in seconds from the start of the workload, lengths are in tokens.

    `prefix` names the content of the prompt's blocks of `PREFIX_BLOCK` tokens, in order: an equal id
    means equal content and equal content before it. Empty means that the prompt is like no other.
    """

    at: float
    prompt_tokens: int
    output_tokens: int
    tenant: str = ""
    adapter: str = ""
    prefix: tuple[int, ...] = ()


def prompt_of(arrival: Arrival, number: int) -> tuple[int, ...]:
    """Token ids that begin as `arrival.prefix` says; `number` tells unlike prompts apart.

    Ids are non-negative. Those of prompts without a prefix are even, of prefix blocks odd.
    """
    if not arrival.prefix:
        return (2 * number,) * arrival.prompt_tokens
    tokens: list[int] = []
    for block in arrival.prefix:
        tokens += [2 * block + 1] * PREFIX_BLOCK
    return tuple(tokens[: arrival.prompt_tokens])
