"""Timelines: phases without gaps, whatever befalls a request, in bounded memory."""

from __future__ import annotations

import random

from cluster import control_pb2 as pb
from cluster.chunk_notes import MOST_CHUNKS, MOST_REQUESTS, ChunkNotes
from cluster.timeline import MOST_PHASES, Timeline
from cluster.timelines import Timelines
from engine.outcome import StepOutcome


def begun(id: str = "r~1-0", now: float = 10.0) -> Timeline:
    """A request that came at 10 and was admitted at `now`."""
    return Timeline(id, tenant="ann", trace="t", prompt_tokens=30, began=10.0, now=now)


def first(prefilled: float = 0.0, cached: int = 0) -> pb.Tokens:
    chunks = [pb.Chunk(tokens=16, age=0.2), pb.Chunk(tokens=14 - cached)]
    return pb.Tokens(index=0, prefill_seconds=prefilled, cached=cached, chunks=chunks)


def told(timeline: Timeline, now: float = 100.0) -> list[tuple[str, str, float, float]]:
    """Name, instance, start and seconds of every phase; they must follow on one another from 0 to the end."""
    message = timeline.message("gateway", now, 0.0)
    at = 0.0
    for phase in message.phases:
        assert abs(phase.start - at) < 1e-9, phase
        assert phase.seconds >= 0
        at = phase.start + phase.seconds
    assert abs(at - message.seconds) < 1e-9
    return [(one.name, one.instance, round(one.start, 6), round(one.seconds, 6)) for one in message.phases]


def test_a_request_that_is_handed_over() -> None:
    one = begun(now=11.0)
    one.placed("prefill-0", "decode-1", "least loaded", 12.0)
    one.tokens("prefill-0", first(prefilled=0.5), 1, 15.0)
    one.moved("decode-1", 16.0)
    one.tokens("decode-1", pb.Tokens(index=1), 1, 18.0)
    one.finish("stop", "", 20.0)
    one.answered(21.0)
    assert told(one) == [
        ("admit", "", 0.0, 1.0),
        ("place", "", 1.0, 1.0),
        ("queue", "prefill-0", 2.0, 2.5),
        ("prefill", "prefill-0", 4.5, 0.5),
        ("handoff", "prefill-0", 5.0, 1.0),
        ("decode", "decode-1", 6.0, 4.0),
        ("respond", "", 10.0, 1.0),
    ]
    assert (one.ttft, one.spent("place", "queue"), one.output_tokens) == (5.0, 3.5, 2)


def test_a_request_that_stays_where_it_is_has_no_handoff() -> None:
    one = begun()
    one.placed("decode-0", "decode-0", "short", 10.0)
    one.tokens("decode-0", first(prefilled=0.5), 1, 11.0)
    one.finish("length", "", 12.0)
    assert [name for name, *_ in told(one)] == ["admit", "place", "queue", "prefill", "decode", "respond"]


def test_a_handoff_that_came_to_nothing_says_so() -> None:
    one = begun()
    one.placed("prefill-0", "decode-1", "", 10.0)
    one.tokens("prefill-0", first(), 1, 11.0)
    one.tokens("prefill-0", pb.Tokens(index=1), 1, 13.0)
    assert told(one, 14.0)[-2:] == [("handoff", "prefill-0", 1.0, 2.0), ("decode", "prefill-0", 3.0, 1.0)]
    assert one.phases[-2].reason == "it stayed at prefill-0"


def test_a_migration_shows_the_pause_of_the_stream() -> None:
    one = begun()
    one.placed("decode-0", "decode-0", "", 10.0)
    one.tokens("decode-0", first(), 1, 11.0)
    one.tokens("decode-0", pb.Tokens(index=1), 1, 12.0)
    one.moved("decode-1", 12.25)
    assert told(one, 13.0)[-3:] == [
        ("decode", "decode-0", 1.0, 1.0),
        ("migrate", "decode-1", 2.0, 0.25),
        ("decode", "decode-1", 2.25, 0.75),
    ]
    one.moved("decode-1", 12.5)
    assert len(one.phases) == 7, "a claim of who has it already is no move"


def test_a_death_shows_the_silence_before_it_was_known() -> None:
    one = begun()
    one.placed("decode-0", "decode-0", "", 10.0)
    one.tokens("decode-0", first(), 1, 11.0)
    one.trouble("decode-0: killed")
    one.placing(13.0)
    one.placed("decode-1", "decode-1", "the other one", 13.5)
    one.tokens("decode-1", pb.Tokens(index=1, prefill_seconds=0.25), 1, 14.0)
    assert told(one, 15.0)[4:] == [
        ("decode", "decode-0", 1.0, 0.0),
        ("recover", "", 1.0, 2.0),
        ("place", "", 3.0, 0.5),
        ("queue", "decode-1", 3.5, 0.25),
        ("prefill", "decode-1", 3.75, 0.25),
        ("decode", "decode-1", 4.0, 1.0),
    ]
    assert one.phases[5].reason == "decode-0: killed"
    assert one.ttft == 1.0


def test_chunks_stand_where_they_were_done() -> None:
    one = begun()
    one.placed("prefill-0", "prefill-0", "", 10.0)
    one.tokens("prefill-0", first(prefilled=0.5, cached=0), 1, 11.0)
    prefill = one.message("g", 12.0, 0.0).phases[3]
    assert [(chunk.tokens, round(chunk.age, 6)) for chunk in prefill.chunks] == [(16, 0.2), (14, 0.0)]
    assert prefill.tokens == 30


def test_one_that_lives_on_without_a_reader_ends_when_it_ends() -> None:
    one = begun()
    one.answered(11.0)
    assert one.ended is None
    one.finish("cancelled", "", 12.0)
    assert one.ended == 12.0


def test_any_order_of_events_leaves_no_gap_and_bounded_memory() -> None:
    rng = random.Random(0)
    for _ in range(200):
        one, now = begun(), 10.0
        for _ in range(rng.randrange(300)):
            now += rng.random()
            name = f"instance-{rng.randrange(3)}"
            match rng.randrange(6):
                case 0:
                    one.placed(name, rng.choice([name, "instance-9"]), "by lot", now)
                case 1:
                    one.tokens(name, first(rng.random() * 3), 1, now)
                case 2:
                    one.tokens(name, pb.Tokens(index=5), 1, now)
                case 3:
                    one.moved(name, now)
                case 4:
                    one.trouble("something")
                case 5:
                    one.placing(now)
        one.finish("stop", "", now + 1)
        one.answered(now + 2)
        told(one)
        assert len(one.phases) <= MOST_PHASES + 1


def test_the_latest_that_ended_are_remembered() -> None:
    known = Timelines(limit=2)
    for number in range(4):
        one = known.open(begun(f"r{number}~1-0"))
        one.finish("stop", "", 11.0)
        known.close(one)
    running = known.open(begun("r9~1-0"))
    assert [one.id for one in known.find("")] == ["r9~1-0", "r3~1-0", "r2~1-0"]
    assert [one.id for one in known.find("r3")] == ["r3~1-0"]
    assert [one.id for one in known.find("", 1)] == ["r9~1-0"]
    assert known.find("r0") == []
    assert known.find("r9")[0].running
    known.close(running)
    assert len(known) == 2


def outcome(request_id: str, computed: int) -> StepOutcome:
    return StepOutcome(progress=((request_id, computed),))


def test_chunks_are_noted_until_the_first_token() -> None:
    now = 0.0
    notes = ChunkNotes(lambda: now)
    for at, computed in ((1.0, 16), (2.0, 32), (3.0, 40)):
        now = at
        notes.observe(outcome("r", computed))
    assert notes.take("r", 40, 0, 3.0) == [(16, 2.0), (16, 1.0), (8, 0.0)]
    assert notes.take("r", 40, 0, 3.0) == [(40, 0.0)], "it was forgotten"


def test_the_last_chunk_counts_before_it_has_been_noted_and_cached_tokens_don_t() -> None:
    now = 1.0
    notes = ChunkNotes(lambda: now)
    notes.observe(outcome("r", 24))
    assert notes.take("r", 40, 16, 3.0) == [(8, 2.0), (16, 0.0)]


def test_notes_are_bounded() -> None:
    notes = ChunkNotes(lambda: 0.0)
    for number in range(MOST_REQUESTS + 5):
        notes.observe(outcome(f"r{number}", 1))
    assert len(notes._notes) == MOST_REQUESTS
    for computed in range(1, 3 * MOST_CHUNKS):
        notes.observe(outcome("long", computed))
    chunks = notes.take("long", 3 * MOST_CHUNKS, 0, 0.0)
    assert len(chunks) <= MOST_CHUNKS + 1
    assert sum(tokens for tokens, _ in chunks) == 3 * MOST_CHUNKS
