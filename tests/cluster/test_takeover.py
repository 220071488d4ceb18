"""What a client of a gateway that has gone gets through another one, what had ended before included."""

from __future__ import annotations

import threading

import httpx
import pytest

from cluster import control_pb2 as pb
from cluster.config_security import TenantLimits
from cluster.takeover import Endings, Taken, gathered, named, same_question, taken_message
from tests.cluster.asking import CHAT, refused
from tests.cluster.doubles import SCRIPT, until
from tests.cluster.local_cluster import LocalCluster, local_gateway
from tests.cluster.test_resume import BODY, STAYS, Stream, opened, runner_of, with_http

DIGEST = bytes(range(32))


BODY_DIGEST = "a" * 16


def end(index: int, *tokens: int, name: str = "mine", reason: str = "stop") -> pb.Tokens:
    request_id = name if "~" in name else f"{name}~{BODY_DIGEST}12345678-0"
    return pb.Tokens(request_id=request_id, index=index, tokens=tokens, finish_reason=reason)


def choice(number: int, *tokens: int, attempt: int = 0, ended: bool = False) -> pb.ChoiceTokens:
    made = pb.ChoiceTokens(choice=number, tokens=tokens)
    made.epoch.attempt = attempt
    if ended:
        made.end.CopyFrom(pb.Tokens(choice=number, index=len(tokens), finish_reason="stop"))
    return made


@pytest.mark.parametrize("n", [1, 2])
def test_what_has_ended_is_not_computed_again(n: int) -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        body = BODY | {"n": n}
        stream = Stream()
        runner_of(cluster).permits = permits = threading.Semaphore(8)
        async with local_gateway(cluster) as second:
            async with opened(client, body, STAYS) as response:
                await stream.read(response, lambda seen: len(seen.texts.get(0, "")) >= 4)
            permits.release(1000)
            await until(lambda: not cluster.driver.runs)
            async with (
                second.client() as other,
                opened(other, body, STAYS | {"last-event-id": stream.last}) as response,
            ):
                await stream.read(response)
            assert not second.driver.runs
        assert stream.texts == {choice: SCRIPT[choice:] for choice in range(n)}
        assert stream.ends == dict.fromkeys(range(n), "stop")
        assert len(cluster.instances["instance-0"].started) == 1

    with_http(test, blocks=256)


@pytest.mark.parametrize("length", [4, 60])
@pytest.mark.parametrize("ended", [False, True])
def test_log_probabilities_come_along(length: int, ended: bool) -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        body = BODY | {"n": 2, "logprobs": True, "top_logprobs": 2}
        whole, stream = Stream(), Stream()
        async with opened(client, body, STAYS | {"x-request-id": "whole"}) as response:
            await whole.read(response)
        runner_of(cluster).permits = permits = threading.Semaphore(length + 20)
        async with local_gateway(cluster) as second:
            async with opened(client, body, STAYS) as response:
                await stream.read(response, lambda seen: len(seen.texts.get(0, "")) >= length)
            permits.release(1000)
            if ended:
                await until(lambda: not cluster.driver.runs)
            async with (
                second.client() as other,
                opened(other, body, STAYS | {"last-event-id": stream.last}) as response,
            ):
                await stream.read(response)
        assert stream.texts == whole.texts == {0: SCRIPT, 1: SCRIPT[1:]}
        assert stream.logprobs == whole.logprobs
        assert {number: len(found) for number, found in whole.logprobs.items()} == {
            number: len(SCRIPT[number:].encode()) + 1 for number in range(2)
        }
        assert len(cluster.instances["instance-0"].started) == 2 or not ended
        assert runner_of(cluster).steps < 3 * len(SCRIPT.encode()), "nothing was drawn again"

    with_http(test, blocks=256)


def test_who_has_not_seen_what_was_drawn_elsewhere_is_given_it_anew() -> None:
    """Log-probabilities don't move with a request: an instance knows those of the last tokens only."""

    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        body = BODY | {"logprobs": True}
        known = pb.Logprob(logprob=-7.0)
        half = pb.ChoiceTokens(tokens=SCRIPT[:12].encode(), logprobs=[known] * 4)

        async def take(name: str, digest: bytes, instances: object) -> dict[int, Taken]:
            return gathered([taken_message("instance-0", {f"{name}~1-0": [half]}, {})])

        cluster.driver.take = take  # type: ignore[method-assign, assignment]
        for seen, of_another in ((7, 0), (8, 4), (10, 2)):
            stream = Stream()
            headers = STAYS | {"x-request-id": f"mine-{seen}"}
            last = f"chatcmpl-mine-{seen}:{seen}"
            async with opened(client, body, headers | {"last-event-id": last}) as response:
                await stream.read(response)
            assert stream.texts == {0: SCRIPT[seen:]}
            values = [one["logprob"] for one in stream.logprobs[0]]
            assert values == [-7.0] * of_another + [-0.25] * (len(values) - of_another)
            assert len(values) == len(SCRIPT[seen:].encode()) + 1

    with_http(test)


def test_of_two_choices_the_one_that_had_not_ended_goes_on() -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        body = BODY | {"n": 2}
        stream = Stream()
        runner_of(cluster).permits = permits = threading.Semaphore(len(SCRIPT) - 4)

        steps = set()

        def ended(seen: Stream) -> bool:
            """The second choice ends first; each of its tokens allows one step: too few for the other."""
            length = len(seen.texts.get(1, ""))
            if length not in steps:
                steps.add(length)
                permits.release()
            return 1 in seen.ends

        async with local_gateway(cluster) as second:
            async with opened(client, body, STAYS) as response:
                await stream.read(response, ended)
            assert 0 not in stream.ends
            drawn = runner_of(cluster).steps
            permits.release(1000)
            async with (
                second.client() as other,
                opened(other, body, STAYS | {"last-event-id": stream.last}) as response,
            ):
                await stream.read(response)
        assert stream.texts == {0: SCRIPT, 1: SCRIPT[1:]}
        assert stream.ends == {0: "stop", 1: "stop"}
        assert runner_of(cluster).steps < drawn + 5, "an ended choice was drawn again"

    with_http(test, blocks=256)


def test_a_stop_string_ends_the_same_answer_elsewhere() -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        body = BODY | {"stop": [SCRIPT[6:9]]}
        first, second = Stream(), Stream()
        async with opened(client, body, STAYS) as response:
            await first.read(response)
        async with (
            local_gateway(cluster) as gateway,
            gateway.client() as other,
            opened(other, body, STAYS) as response,
        ):
            await second.read(response)
        assert first.texts == second.texts == {0: SCRIPT[:6]}
        assert first.ends == second.ends == {0: "stop"}
        assert len(cluster.instances["instance-0"].started) == 1

    with_http(test)


@pytest.mark.parametrize("other", [{"seed": 7}, {"max_tokens": 3}])
def test_another_question_by_the_same_name_has_its_own_answer(other: dict[str, int]) -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        first, second = Stream(), Stream()
        async with opened(client, BODY, STAYS) as response:
            await first.read(response)
        async with (
            local_gateway(cluster) as gateway,
            gateway.client() as elsewhere,
            opened(elsewhere, BODY | other, STAYS) as response,
        ):
            await second.read(response)
        assert first.texts == {0: SCRIPT}
        assert second.texts == {0: SCRIPT[: other.get("max_tokens", len(SCRIPT))]}
        assert len(cluster.instances["instance-0"].started) == 2

    with_http(test)


def test_a_place_of_another_shape_is_refused_and_leaves_nothing_behind() -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        wrong = STAYS | {"last-event-id": "chatcmpl-mine:3,4"}
        for _ in range(3):
            refused(await client.post(CHAT, json=BODY, headers=wrong), 400, "invalid_value", "last-event-id")
        whole = Stream()
        async with opened(client, BODY, STAYS) as response:
            await whole.read(response)
        refused(await client.post(CHAT, json=BODY, headers=wrong), 400, "invalid_value", "last-event-id")
        assert not cluster.service._jobs
        assert len(cluster.instances["instance-0"].started) == 1

    with_http(test, tenants=TenantLimits(concurrent={"*": 1}))


def test_what_is_computed_again_is_charged_and_what_is_kept_is_not() -> None:
    """Where nothing was kept each repeat is a request of its own, and the third is one too many."""

    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        limits = cluster.service.access.limits

        async def asked(name: str, body: dict[str, object]) -> int:
            headers = {"x-request-id": name, "x-tandem-resumable": "1"}
            return (
                await client.post(CHAT, json=BODY | {"stream": False} | body, headers=headers)
            ).status_code

        assert await asked("kept", {}) == 200
        left = int(limits.headers("")["x-ratelimit-remaining-tokens"])
        for _ in range(5):
            assert await asked("kept", {}) == 200
        # In the meantime the bucket fills.
        assert int(limits.headers("")["x-ratelimit-remaining-tokens"]) >= left
        assert cluster.service.metrics.objectives.lately().requests == 1, "a replay says nothing of how fast"

        async def forgotten(name: str, digest: bytes, instances: object) -> dict[int, Taken]:
            return {}

        cluster.driver.take = forgotten  # type: ignore[method-assign, assignment]
        again = [await asked("again", {}) for _ in range(3)]
        assert again == [200, 200, 429]

    with_http(test, tenants=TenantLimits(requests={"*": 3}, tokens={"*": 10_000}))


def test_a_gateway_that_does_not_tell_the_body_finds_nothing_that_has_ended() -> None:
    endings = Endings(30.0)
    endings.keep(end(0, 9, name=named("mine", DIGEST, 0)), [9])
    assert endings.find("mine", DIGEST.hex())
    assert endings.find("mine", "") == {}


def test_a_stop_string_that_only_the_dead_had_seen_ends_the_answer_all_the_same() -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        body = BODY | {"stop": [SCRIPT[6:9]]}
        past = pb.ChoiceTokens(tokens=SCRIPT[:12].encode())
        stream = Stream()

        async def take(name: str, digest: bytes, instances: object) -> dict[int, Taken]:
            return gathered([taken_message("instance-0", {f"{name}~1-0": [past]}, {})])

        cluster.driver.take = take  # type: ignore[method-assign, assignment]
        async with opened(client, body, STAYS) as response:
            await stream.read(response)
        assert stream.texts == {0: SCRIPT[:6]}

    with_http(test)


def test_names_are_each_questions_own() -> None:
    one, two = named("a~b", DIGEST, 0), named("a~b", DIGEST, 0)
    assert one != two
    digest = DIGEST.hex()
    assert same_question(one, "a~b", digest)
    assert same_question(one, "a~b", "")
    assert not same_question(one, "a", digest)
    assert not same_question(one, "a~b", "ff" + digest[2:])
    assert not same_question(named(f"a~{digest[:16]}", DIGEST, 0), "a", digest)


def test_an_ended_choice_is_kept_for_its_lease() -> None:
    now = 100.0
    endings = Endings(30.0, clock=lambda: now)
    endings.keep(end(2, 9), [7, 8, 9])
    now = 129.9
    ((kept,),) = endings.find("mine", BODY_DIGEST).values()
    assert (list(kept.tokens), list(kept.end.tokens)) == ([7, 8], [9])
    now = 130.1
    assert endings.find("mine", BODY_DIGEST) == {}
    assert not endings._asked


@pytest.mark.parametrize("reason", ["", "cancelled", "failed"])
def test_what_did_not_end_well_is_not_kept(reason: str) -> None:
    endings = Endings(30.0)
    endings.keep(end(0, 9, reason=reason), [9])
    assert endings.find("mine", BODY_DIGEST) == {}


@pytest.mark.parametrize("tokens", [0, 200])
def test_what_is_kept_is_bounded_and_the_oldest_go_first(tokens: int) -> None:
    """Short answers have a weight too."""
    one = Endings(30.0)
    one.keep(end(tokens, name="n"), range(tokens))
    endings = Endings(30.0, most=2 * one._words)
    for number in range(5):
        endings.keep(end(tokens, name=f"{number}"), range(tokens))
    found = [bool(endings.find(f"{number}", BODY_DIGEST)) for number in range(5)]
    assert found == [False] * 3 + [True] * 2
    endings.keep(end(tokens, name="4"), range(tokens))
    assert endings.find("3", BODY_DIGEST), "the same choice counts once"
    endings.keep(end(100_000, name="long"), range(100_000))
    assert not endings._kept and not endings._asked and not endings._words


def test_parts_of_several_instances_are_one_answer() -> None:
    ended = choice(1, 5, ended=True)
    messages = [
        taken_message("a", {"mine~1-0": [choice(0, 1, 2), choice(1, 5)]}, {}),
        taken_message("b", {"mine~1-0": [choice(0, 1, 2, 3)], "mine~1-1": [choice(0, 4)]}, {}),
        taken_message("c", {}, {"mine~1-0": [ended]}),
    ]
    for order in (messages, messages[::-1]):
        found = gathered(order)
        assert set(found) == {0, 1}
        assert (found[0].instance, found[0].outputs) == ("b", {0: (1, 2, 3), 1: (5,)})
        assert found[0].ends == {1: ended.end}
        assert (found[1].instance, found[1].outputs, found[1].ends) == ("b", {0: (4,)}, {})


def test_a_newer_attempt_counts_though_the_older_one_ended_unseen() -> None:
    """As its client has read it: the older one's instance had only been taken for lost."""
    messages = [
        taken_message("a", {}, {"mine~1-0": [choice(0, 1, 2, 3, ended=True), choice(1, 9, ended=True)]}),
        taken_message("b", {"mine~1-0": [choice(0, 1, 7, attempt=1)]}, {}),
    ]
    for order in (messages, messages[::-1]):
        taken = gathered(order)[0]
        assert (taken.instance, taken.outputs) == ("b", {0: (1, 7), 1: (9,)})
        assert set(taken.ends) == {1}, "that one had ended before the recovery"


def test_of_two_lives_the_one_that_runs_counts_and_what_had_ended_in_the_other() -> None:
    messages = [
        taken_message("a", {}, {"mine~1-0": [choice(0, 1, 2, 3, ended=True), choice(1, 9, ended=True)]}),
        taken_message("b", {"mine~2-0": [choice(0, 1, 7)]}, {}),
    ]
    for order in (messages, messages[::-1]):
        taken = gathered(order)[0]
        assert (taken.instance, taken.outputs) == ("b", {0: (1, 7), 1: (9,)})
        assert set(taken.ends) == {1}
