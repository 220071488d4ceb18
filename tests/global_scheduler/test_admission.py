"""Admission: what no instance could hold is refused, and nothing that one could."""

from __future__ import annotations

import pytest

from engine.admission import refuse_what_never_fits
from engine.batch import Limits
from engine.blocks import BlockPool
from engine.errors import CapacityError, ContextLengthExceeded
from engine.request import Request, Sampling
from engine.status import InstanceStatus
from global_scheduler.scheduler import Scheduler, SchedulerSettings
from global_scheduler.view import Summary

BLOCKS, SIZE = 8, 4


def scheduler() -> Scheduler:
    made = Scheduler(SchedulerSettings())
    for name in ("prefill-0", "decode-0"):
        made.observe(InstanceStatus(name, name[:-2], blocks_total=BLOCKS, block_size=SIZE), 0.0)
    return made


@pytest.mark.parametrize("prompt", [1, 3, 4, 5, 31, 32])
def test_scheduler_and_engine_agree_on_the_longest_request_that_fits(prompt: int) -> None:
    """All tokens but the last are stored, so one more than the pool holds is the most."""
    most = BLOCKS * SIZE + 1 - prompt
    limits = Limits(max_length=1000, max_sequences=8)

    def request(tokens: int) -> Request:
        return Request("r", (1,) * prompt, Sampling(max_tokens=tokens))

    refuse_what_never_fits(request(most), BlockPool(BLOCKS, SIZE), limits)
    assert scheduler().place(Summary("r", prompt, most), 0.0).decode == "decode-0"
    with pytest.raises(ContextLengthExceeded):
        refuse_what_never_fits(request(most + 1), BlockPool(BLOCKS, SIZE), limits)
    with pytest.raises(ContextLengthExceeded, match=r"come to 34 tokens, and .* has room for 33:"):
        scheduler().place(Summary("r", prompt, most + 1), 0.0)


def test_an_instance_that_has_not_said_how_much_it_holds_makes_no_request_impossible() -> None:
    made = Scheduler(SchedulerSettings())
    made.observe(InstanceStatus("decode-0", "decode", blocks_total=0, block_size=SIZE), 0.0)
    with pytest.raises(CapacityError):
        made.place(Summary("r", 4, 4), 0.0)
    made.observe(InstanceStatus("decode-1", "decode", blocks_total=BLOCKS, block_size=SIZE), 0.0)
    assert made.place(Summary("r", 4, 4), 0.0).decode == "decode-1"
    with pytest.raises(ContextLengthExceeded, match="has room for 33:"):
        made.place(Summary("r", 30, 4), 0.0)
