"""What a tenant may have: buckets on a clock that tests turn, and gateways that tell each other."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import control_pb2 as pb
from cluster.config_security import TenantLimits
from cluster.limits import Limits, Ticket
from engine.errors import RateLimited


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def limits(clock: Clock, **of: dict[str, int]) -> Limits:
    return Limits(TenantLimits(**of), clock)


def wait(found: Limits, tenant: str = "acme", prompt: int = 1) -> int:
    """Seconds that a refused request is told to wait."""
    with pytest.raises(RateLimited) as caught:
        found.admit(tenant, prompt)
    assert caught.value.status == 429 and caught.value.code == "tenant_quota"
    assert caught.value.retry_after is not None
    return caught.value.retry_after


def test_without_limits_everybody_has_what_they_ask_for() -> None:
    found = limits(Clock())
    for _ in range(1000):
        found.admit("acme", 10_000)
    assert found.headers("acme") == {} and found.report() == []


def test_requests_are_counted_by_the_minute_and_flow_back() -> None:
    clock = Clock()
    found = limits(clock, requests={"acme": 6})
    for _ in range(6):
        found.admit("acme", 1)
    assert wait(found) == 10
    clock.now += 9.9
    assert wait(found) == 1
    clock.now += 0.11
    found.admit("acme", 1)
    assert wait(found) == 10


def test_a_refused_request_costs_nothing() -> None:
    clock = Clock()
    found = limits(clock, requests={"acme": 1})
    found.admit("acme", 1)
    for _ in range(100):
        wait(found)
    clock.now += 60
    found.admit("acme", 1)


def test_tokens_of_prompts_and_answers_count() -> None:
    clock = Clock()
    found = limits(clock, tokens={"acme": 600})
    ticket = found.admit("acme", 500)
    produced = [0]
    ticket.watch(lambda: produced[0])
    assert found.headers("acme")["x-ratelimit-remaining-tokens"] == "100"
    produced[0] = 90
    assert found.headers("acme")["x-ratelimit-remaining-tokens"] == "10", "counted while it grows"
    assert wait(found, prompt=40) == 3
    produced[0] = 200
    found.close(ticket)
    assert found.headers("acme")["x-ratelimit-remaining-tokens"] == "0"
    assert wait(found, prompt=1) == 11, "100 below zero, 10 tokens a second"
    clock.now += 10.2
    found.admit("acme", 1)


def test_a_prompt_above_the_limit_waits_for_a_full_bucket_and_then_comes_in() -> None:
    clock = Clock()
    found = limits(clock, tokens={"acme": 60})
    found.admit("acme", 30)
    assert wait(found, prompt=500) == 30
    clock.now += 30
    found.admit("acme", 500)
    assert wait(found, prompt=1) == 60 * 441 // 60


def test_requests_at_the_same_time_are_bounded() -> None:
    found = limits(Clock(), concurrent={"acme": 2})
    first, _ = found.admit("acme", 1), found.admit("acme", 1)
    assert wait(found) == 1
    found.close(first)
    found.close(first)
    found.admit("acme", 1)
    assert wait(found) == 1, "closing twice frees one place only"


def test_who_is_not_named_has_the_limit_of_the_others_each() -> None:
    found = limits(Clock(), requests={"acme": 2, "*": 1})
    for tenant in ("acme", "acme", "b", "c", ""):
        found.admit(tenant, 1)
    for tenant in ("acme", "b", "c", ""):
        wait(found, tenant)


def test_clients_are_told_what_is_left_in_openais_words() -> None:
    clock = Clock()
    found = limits(clock, requests={"acme": 60}, tokens={"acme": 6000})
    found.admit("acme", 100)
    assert found.headers("acme") == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1.000s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5900",
        "x-ratelimit-reset-tokens": "1.000s",
    }


# Several gateways


def beat(gateways: dict[str, Limits]) -> None:
    """As the controller does it: each is told what all others reported."""
    status = [pb.Gateway(name=name, tenants=one.report()) for name, one in gateways.items()]
    for name, one in gateways.items():
        one.hear(gateway for gateway in status if gateway.name != name)


def test_gateways_count_together_a_beat_late() -> None:
    clock = Clock()
    both = {name: limits(clock, requests={"acme": 10}, tokens={"acme": 1000}) for name in ("a", "b")}
    beat(both)
    for _ in range(4):
        both["a"].admit("acme", 100)
    for _ in range(3):
        both["b"].admit("acme", 50)
    beat(both)
    for one in both.values():
        assert one.headers("acme")["x-ratelimit-remaining-requests"] == "3"
        assert one.headers("acme")["x-ratelimit-remaining-tokens"] == "450"
    beat(both)
    assert both["a"].headers("acme")["x-ratelimit-remaining-requests"] == "3", "each use counts once"


def test_the_first_use_of_a_tenant_at_another_gateway_counts() -> None:
    clock = Clock()
    both = {name: limits(clock, requests={"acme": 10}) for name in ("a", "b")}
    beat(both)
    both["a"].admit("acme", 1)
    beat(both)
    assert both["b"].headers("acme")["x-ratelimit-remaining-requests"] == "9"


def test_a_gateway_that_is_out_of_sight_for_a_while_is_not_counted_twice() -> None:
    both = {name: limits(Clock(), requests={"acme": 10}) for name in ("a", "b")}
    beat(both)
    both["a"].admit("acme", 1)
    beat(both)
    both["b"].hear([])
    beat(both)
    assert both["b"].headers("acme")["x-ratelimit-remaining-requests"] == "9"


def test_what_was_before_a_gateway_began_is_the_past() -> None:
    clock = Clock()
    old, new = limits(clock, requests={"acme": 10}), limits(clock, requests={"acme": 10})
    for _ in range(5):
        old.admit("acme", 1)
    beat({"old": old, "new": new})
    assert new.headers("acme")["x-ratelimit-remaining-requests"] == "10"
    old.admit("acme", 1)
    beat({"old": old, "new": new})
    assert new.headers("acme")["x-ratelimit-remaining-requests"] == "9"


def test_what_was_before_a_gateway_is_first_heard_is_the_past_whenever_that_is() -> None:
    """A gateway may begin beside a controller that has not been joined by the others yet."""
    clock = Clock()
    both = {name: limits(clock, requests={"acme": 2}, tokens={"acme": 100}) for name in ("old", "new")}
    for _ in range(50):
        both["old"].admit("acme", 50)
        clock.now += 60
    both["new"].hear([])
    beat(both)
    both["new"].admit("acme", 50)
    both["old"].admit("acme", 50)
    beat(both)
    wait(both["new"])


def test_gateways_that_are_gone_are_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.limits.REMEMBERED", 20)
    found = limits(Clock(), requests={"acme": 10})
    stays = [pb.TenantUse(tenant=f"t{number}", requests=number) for number in range(30)]
    for number in range(100):
        passes = pb.Gateway(name=f"passes-{number}", tenants=[pb.TenantUse(tenant="acme")])
        found.hear([pb.Gateway(name="stays", tenants=stays), passes])
    assert [*found._heard] == [*(f"passes-{number}" for number in range(89, 99)), "stays", "passes-99"]
    assert len(found._heard["stays"]) == 30


def test_what_runs_elsewhere_counts_until_its_gateway_says_otherwise_or_is_gone() -> None:
    clock = Clock()
    both = {name: limits(clock, concurrent={"acme": 2}) for name in ("a", "b")}
    tickets = [both["a"].admit("acme", 1), both["a"].admit("acme", 1)]
    beat(both)
    wait(both["b"])
    both["a"].close(tickets[0])
    beat(both)
    both["b"].admit("acme", 1)
    wait(both["b"])
    both["b"].hear([])
    both["b"].admit("acme", 1)


def test_what_is_resumed_from_another_gateway_is_never_refused() -> None:
    found = limits(Clock(), requests={"acme": 1}, concurrent={"acme": 1})
    found.admit("acme", 1)
    found.resume("acme")
    wait(found)


def test_of_what_is_resumed_only_the_prompts_that_are_computed_again_are_charged() -> None:
    found = limits(Clock(), requests={"acme": 1}, tokens={"acme": 100})
    found.admit("acme", 100)
    found.close(found.resume("acme"))
    assert [(one.requests, one.tokens) for one in found.report()] == [(1, 100)]
    found.close(found.resume("acme", 7))
    assert [(one.requests, one.tokens) for one in found.report()] == [(1, 107)]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 5.0)), max_size=200))
def test_in_any_stretch_of_time_no_more_comes_in_than_the_bucket_and_its_flow(
    moments: list[tuple[str, float]],
) -> None:
    """Gateways that hear of one another after each request let in what one gateway would."""
    clock = Clock()
    many = {name: limits(clock, requests={"acme": 10}) for name in "abc"}
    beat(many)
    admitted: list[float] = []
    for name, pause in moments:
        clock.now += pause
        with contextlib.suppress(RateLimited):
            many[name].admit("acme", 1)
            admitted.append(clock.now)
        beat(many)
    for first in range(len(admitted)):
        for last in range(first, len(admitted)):
            flow = (admitted[last] - admitted[first]) * 10 / 60
            assert last - first + 1 <= 10 + flow + 1e-6


def test_a_ticket_without_an_answer_charges_nothing_more() -> None:
    found = limits(Clock(), tokens={"acme": 100})
    ticket = found.admit("acme", 10)
    assert isinstance(ticket, Ticket)
    found.close(ticket)
    assert found.headers("acme")["x-ratelimit-remaining-tokens"] == "90"
