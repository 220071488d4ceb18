"""What is refused at the door: requests that can never run here, and one too many in the queue."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from engine.batch import Limits
from engine.blocks import BlockPool
from engine.errors import ContextLengthExceeded, InvalidParameter
from engine.request import Request
from engine.sequence import Sequence


def most_blocks(request: Request, pool: BlockPool, limits: Limits) -> int:
    """Blocks that all choices of a request may come to hold at once.

    They share the full blocks of the prompt. The last token of a choice is drawn but never computed.
    """
    longest = min(request.longest, limits.max_length) - 1
    shared = len(request.prompt) // pool.block_size
    return shared + request.sampling.n * (pool.blocks_for(longest) - shared)


def refuse_what_never_fits(request: Request, pool: BlockPool, limits: Limits) -> None:
    """Raises InvalidParameter or ContextLengthExceeded, each naming what to change."""
    prompt, sampling = len(request.prompt), request.sampling
    if prompt == 0:
        raise InvalidParameter("the prompt has no tokens: send at least one", param="prompt")
    if sampling.max_tokens < 1:
        raise InvalidParameter("max_tokens must be at least 1", param="max_tokens")
    if prompt >= limits.max_length:
        raise ContextLengthExceeded(
            f"the prompt has {prompt} tokens and the context ends at {limits.max_length}: "
            f"shorten it to {limits.max_length - 1} or fewer",
            param="prompt",
        )
    if not 1 <= sampling.n <= limits.max_sequences:
        raise InvalidParameter(
            f"n is {sampling.n}, an instance runs between 1 and {limits.max_sequences} sequences: "
            "ask for fewer choices or raise engine.max_sequences",
            param="n",
        )
    blocks = most_blocks(request, pool, limits)
    if blocks > pool.total:
        raise ContextLengthExceeded(
            f"{prompt} prompt tokens and {sampling.n} × {sampling.max_tokens} output tokens may need "
            f"{blocks} KV blocks of {pool.block_size} tokens, an instance has {pool.total}: "
            "lower max_tokens or n, shorten the prompt, or raise engine.kv_memory",
            param="max_tokens",
        )


def refuse_overdrawn(request: Request, choices: SequenceOf[Sequence], limits: Limits) -> None:
    """Recovered choices must be distinct ones of the request that can still draw."""
    numbers = [sequence.choice for sequence in choices]
    if len(set(numbers)) < len(numbers) or not all(0 <= c < request.sampling.n for c in numbers):
        raise InvalidParameter(f"{numbers} are not distinct choices of n = {request.sampling.n}", param="n")
    most = min(request.sampling.max_tokens, limits.max_length - len(request.prompt))
    for sequence in choices:
        if len(sequence.output) >= most:
            raise InvalidParameter(
                f"choice {sequence.choice} has {len(sequence.output)} of {most} tokens: it has finished",
                param="max_tokens",
            )
