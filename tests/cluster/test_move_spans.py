"""What a live migration went through stands in the trace of its request, on the span of the move."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan

from cluster import control_pb2 as pb
from cluster import trace_names as names
from cluster.arrival import Arrival
from cluster.config import GatewayConfig
from cluster.gateway_api import build_api
from cluster.migrations import Migrations
from cluster.move_notes import AT_ONCE, MOST, MoveNotes
from cluster.status_message import migration_message
from cluster.timeline import MIGRATE, Phase, Timeline
from engine.errors import Overloaded
from tests.cluster.doubles import until
from tests.cluster.local_cluster import local_cluster
from tests.cluster.pools import Pools, pools
from tests.cluster.test_tracing import Spans, attributes, seconds, service_of

PER_TOKEN = 0.005
BODY = {"model": "tiny", "prompt": "one two three four " * 20, "max_tokens": 300, "ignore_eos": True}


class Controller:
    """Remembers the moves that it made, as the real one does, and is asked for them."""

    def __init__(self) -> None:
        self.log = Migrations(100)
        self.asked: list[str] = []
        self.away = False

    async def move(self, real: Pools, to: int, reason: str) -> pb.Migration:
        (run,) = real.driver.runs.values()
        address = real.decodes[to].instance._receiver.address
        moved = await asyncio.wrap_future(real.decode.instance.move(run.request.id, address, reason))
        return self.log.add(migration_message(moved))

    async def ask(self, request_id: str) -> Sequence[pb.Migration]:
        self.asked.append(request_id)
        if self.away:
            raise Overloaded("the controller is not there")
        return self.log.listed(request_id)

    def count(self) -> int:
        return sum(one.count for one in self.log.totals().counts)


@asynccontextmanager
async def gateway(real: Pools, spans: Spans, notes: MoveNotes) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(build_api(service_of(real), spans.traces, None, notes))
    async with httpx.AsyncClient(transport=transport, base_url="http://tandem", timeout=60) as client:
        yield client


def traced(
    tmp_path: Path,
    model: Path,
    controller: Controller,
    meanwhile: Callable[[Pools], object],
) -> Spans:
    """One request while something happens to it, and its trace."""
    spans = Spans()

    async def ask() -> None:
        notes = MoveNotes(controller.ask, controller.count)
        both = pools(tmp_path, prefill=False, decodes=2, budget=32, model=model)
        async with both as real, gateway(real, spans, notes) as client:
            for one in real.decodes:
                one.runner.dawdle = partial(time.sleep, PER_TOKEN)
            asking = asyncio.create_task(client.post("/v1/completions", json=BODY))
            await until(lambda: any(run.progress.output_tokens > 4 for run in real.driver.runs.values()))
            await meanwhile(real)  # type: ignore[misc]
            assert (await asking).status_code == 200
            await notes.close()

    asyncio.run(ask())
    return spans


def events(span: ReadableSpan) -> list[str]:
    return [event.name for event in span.events]


def about(span: ReadableSpan, event: str) -> dict[str, object]:
    (found,) = [one for one in span.events if one.name == event]
    return dict(found.attributes or {})


def test_a_move_that_was_made_has_its_stages_on_its_span(tmp_path: Path, tiny_model: Path) -> None:
    controller = Controller()

    async def move(real: Pools) -> None:
        assert (await controller.move(real, 1, "a test")).outcome == "committed"

    spans = traced(tmp_path, tiny_model, controller, move)
    (move_span,) = [span for span in spans.children(spans.root) if span.name == "migrate"]
    (move_made,) = controller.log.listed()
    assert events(move_span) == [names.RESERVE, names.COPY, names.FREEZE, names.COMMIT]
    assert about(move_span, names.COPY) == {
        names.COPIES: move_made.stages,
        names.BLOCKS: move_made.blocks,
        names.BYTES: move_made.bytes,
    }
    assert move_made.bytes > 0
    assert about(move_span, names.COMMIT) == {names.REASON: "a test"}
    told = attributes(move_span)
    assert (told[names.SOURCE], told[names.INSTANCE]) == ("decode-0", "decode-1")
    assert told[names.OUTCOME] == "committed"
    times = [event.timestamp for event in move_span.events]
    assert times == sorted(times)
    assert abs(times[-1] - (move_span.end_time or 0)) < 1e6, "the gateway's own end, in ns"
    assert (times[-1] - times[0]) / 1e9 == pytest.approx(move_made.seconds, abs=1e-3)


def test_spans_add_up_with_stages_on_them(tmp_path: Path, tiny_model: Path) -> None:
    controller = Controller()

    async def move(real: Pools) -> None:
        await controller.move(real, 1, "a test")

    spans = traced(tmp_path, tiny_model, controller, move)
    children = spans.children(spans.root)
    assert abs(sum(map(seconds, children)) - seconds(spans.root)) < 0.01 * seconds(spans.root)


def test_a_move_that_came_to_nothing_says_why_where_the_request_stayed(
    tmp_path: Path, tiny_model: Path
) -> None:
    controller = Controller()

    async def refused(real: Pools) -> None:
        real.decodes[1].instance.drain()
        assert (await controller.move(real, 1, "a test")).outcome == "aborted"

    spans = traced(tmp_path, tiny_model, controller, refused)
    assert "migrate" not in [span.name for span in spans.children(spans.root)]
    (decode,) = [span for span in spans.children(spans.root) if span.name == "decode"]
    (stayed,) = spans.children(decode)
    assert stayed.name == "migrate"
    assert events(stayed)[0] == names.RESERVE
    assert events(stayed)[-1] == names.ABORT
    (record,) = controller.log.listed()
    assert about(stayed, names.ABORT) == {names.REASON: record.detail}
    assert record.detail
    assert (decode.start_time or 0) <= (stayed.start_time or 0) <= (stayed.end_time or 0)
    assert (stayed.end_time or 0) <= (decode.end_time or 0)


def test_a_controller_that_is_away_costs_the_stages_and_not_the_trace(
    tmp_path: Path, tiny_model: Path
) -> None:
    controller = Controller()

    async def move(real: Pools) -> None:
        await controller.move(real, 1, "a test")
        controller.away = True

    spans = traced(tmp_path, tiny_model, controller, move)
    (move_span,) = [span for span in spans.children(spans.root) if span.name == "migrate"]
    assert events(move_span) == []
    assert len(controller.asked) == 2, "once more after a moment"


def arrived(name: str) -> Arrival:
    return Arrival(0.0, timelines=[Timeline(name, tenant="", trace="", prompt_tokens=1, began=0.0, now=0.0)])


def test_a_controller_that_does_not_answer_is_asked_a_few_things_at_once_and_of_a_few_requests() -> None:
    """Each of 100 requests was under way when one was moved."""
    asked: set[str] = set()
    most = 0
    told: list[dict[str, list[pb.Migration]]] = []

    async def ask(request_id: str) -> Sequence[pb.Migration]:
        nonlocal most
        asked.add(request_id)
        most = max(most, len(asked))
        try:
            await asyncio.Event().wait()
        finally:
            asked.remove(request_id)
        raise AssertionError

    async def test() -> None:
        notes = MoveNotes(ask, lambda: 1)

        async def find(arrival: Arrival) -> None:
            told.append(await notes.find(arrival))

        worth = 0
        for number in range(100):
            arrival = arrived(f"r{number}")
            if notes.worth_asking(arrival, 0):
                worth += 1
                notes.later(find(arrival))
        assert worth == MOST
        await until(lambda: len(asked) == AT_ONCE)
        await asyncio.wait_for(notes.close(), 20.0)
        assert told == [{}] * MOST, "the others are not asked for one after the other, each for seconds"
        assert most == AT_ONCE
        assert notes.worth_asking(arrived("later"), 0)

    asyncio.run(test())


def test_many_requests_learn_of_their_moves_from_a_controller_that_answers() -> None:
    most = 0

    async def test() -> None:
        controller, asking = Controller(), 0
        controller.log.add(pb.Migration(request_id="r7", outcome="committed"))

        async def ask(request_id: str) -> Sequence[pb.Migration]:
            nonlocal asking, most
            asking += 1
            most = max(most, asking)
            await asyncio.sleep(0)
            asking -= 1
            return await controller.ask(request_id)

        notes = MoveNotes(ask, controller.count)
        told = await asyncio.gather(*(notes.find(arrived(f"r{number}")) for number in range(MOST)))
        assert [bool(moves[f"r{number}"]) for number, moves in enumerate(told)].index(True) == 7
        assert most == AT_ONCE

    asyncio.run(test())


def test_beyond_that_a_trace_goes_without_its_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.move_notes.MOST", 0)
    spans, controller = Spans(), Controller()
    counts = iter((0, 1))

    async def ask() -> None:
        async with local_cluster(config=GatewayConfig(api_keys=())) as cluster:
            notes = MoveNotes(controller.ask, lambda: next(counts, 1))
            transport = httpx.ASGITransport(build_api(cluster.service, spans.traces, None, notes))
            async with httpx.AsyncClient(transport=transport, base_url="http://tandem") as client:
                await client.post("/v1/completions", json={"model": "tiny", "prompt": "abc", "max_tokens": 3})
            assert spans.root.name == "text_completion tiny", "at once"

    asyncio.run(ask())
    assert controller.asked == []


def test_nobody_is_asked_about_a_request_that_stayed_where_it_was() -> None:
    controller = Controller()
    notes = MoveNotes(controller.ask, controller.count)
    arrival = arrived("r")
    assert not notes.worth_asking(arrival, controller.count())
    controller.log.add(pb.Migration(request_id="another", outcome="committed"))
    assert notes.worth_asking(arrival, 0), "somebody was moved meanwhile"
    assert not notes.worth_asking(arrival, 1)
    arrival.timelines[0].phases.append(Phase(MIGRATE, 0.0, 0.1, "decode-1"))
    assert notes.worth_asking(arrival, 1)
