"""Faults that the end of the load cuts short: what is undone, and that they were not carried out."""

from __future__ import annotations

import asyncio
import os
import platform
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest

from cluster import control_pb2 as pb
from cluster.chaos import changes, faults
from cluster.chaos.faults import Done, Injector
from cluster.chaos.scenario import Fault, Load, Scenario, load
from cluster.chaos.threads import to_its_end
from cluster.chaos.verdict import judge
from cluster.control_client import ControlClient
from engine.errors import RefusedError
from tests.cluster.doubles import until

BOUND = 20.0
ENDED = "the load ended before"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "POLL", 0.001)
    monkeypatch.setattr(changes, "POLL", 0.001)


@dataclass
class Gate:
    """A call of the controller that takes as long as the test wants."""

    reached: threading.Event = field(default_factory=threading.Event)
    open: threading.Event = field(default_factory=threading.Event)

    def pass_through(self) -> None:
        self.reached.set()
        assert self.open.wait(BOUND)


class Cluster:
    """Two decode instances and a prefill one, all of this process.

    Who is emptied stays so until `emptied`. A call that has a gate waits there before it does anything.
    """

    def __init__(self) -> None:
        self.roles = {"prefill-0": "prefill", "decode-0": "decode", "decode-1": "decode"}
        self.sizes = {"prefill": 1, "decode": 2}
        self.settings = {"scheduler.rest": 2.0}
        self.cordoned: set[str] = set()
        self.becoming: dict[str, str] = {}
        self.afflicted: dict[str, str] = {}
        self.gates: dict[str, Gate] = {}
        self.looks = 0
        self.blind = False

    def _enter(self, call: str) -> None:
        if call in self.gates:
            self.gates[call].pass_through()

    def status(self) -> pb.ClusterStatus:
        """As of a controller that has just begun while it is `blind`."""
        self.looks += 1
        if self.blind:
            return pb.ClusterStatus()
        here = {"node": platform.node(), "pid": os.getpid(), "status": pb.InstanceStatus(running=1)}
        instances = [
            pb.Instance(
                name=name,
                role=role,
                state="draining" if name in self.becoming else "ready",
                cordoned=name in self.cordoned,
                **here,
            )
            for name, role in self.roles.items()
        ]
        pools = [
            pb.Pool(name=name, target=size, ready=list(self.roles.values()).count(name))
            for name, size in self.sizes.items()
        ]
        return pb.ClusterStatus(pools=pools, instances=instances)

    def emptied(self, name: str) -> None:
        self.roles[name] = self.becoming.pop(name)
        self.cordoned.discard(name)

    def drain(self, name: str) -> None:
        self._enter("drain")
        self.cordoned.add(name)
        self.becoming[name] = self.roles[name]

    def cordon(self, name: str, *, on: bool) -> None:
        self._enter("cordon")
        assert not on
        self.cordoned.discard(name)
        self.becoming.pop(name, None)

    def change_role(self, name: str, role: str) -> None:
        self._enter("change_role")
        if self.roles[name] != role:
            assert name not in self.becoming
            self.cordoned.add(name)
            self.becoming[name] = role

    def afflict(self, name: str, fault: str) -> None:
        self._enter("afflict")
        self.afflicted[name] = fault

    def scale(self, pool: str, size: int) -> None:
        self._enter("scale")
        self.sizes[pool] = size

    def config(self) -> dict[str, object]:
        return {"scheduler": {"rest": self.settings["scheduler.rest"]}}

    def apply(self, settings: dict[str, float]) -> None:
        self._enter("apply")
        self.settings |= settings


def injector(cluster: Cluster) -> Injector:
    return Injector(cast("ControlClient", cluster), 1, lambda text: None)


def cut_short(
    cluster: Cluster,
    *schedule: Fault,
    when: Callable[[], object],
    then: Callable[[], object] = lambda: None,
) -> list[Done]:
    """The load ends as soon as `when` holds; what happens `then` comes after that."""
    running = injector(cluster)

    async def main() -> None:
        harm = asyncio.create_task(running.run(schedule))
        await until(when)
        harm.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        then()
        async with asyncio.timeout(BOUND):
            await asyncio.wait([harm])
        assert harm.cancelled()

    asyncio.run(main())
    return running.done


def test_a_rolling_restart_that_is_cut_short_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    ended: list[int] = []

    def terminate(pid: int, signal: int) -> None:
        """The first is replaced; the second is not while the load goes on."""
        if not ended:
            cluster.roles = {"prefill-1": "prefill"} | cluster.roles
            del cluster.roles["prefill-0"]
        ended.append(pid)

    monkeypatch.setattr(faults, "os", SimpleNamespace(kill=terminate))
    fault = Fault(kind="rolling_restart", target="instance", at=0.0)
    done = cut_short(cluster, fault, when=lambda: len(ended) == 2)
    assert [one.missed for one in done] == [ENDED]
    scenario = Scenario(name="x", load=Load(logprobs=0.0), faults=(fault,))
    told = judge(scenario, [], [], done)
    assert told.failures == (f"rolling_restart instance: not carried out even once: {ENDED}",)
    assert (told.faults, told.faults_missed) == (0, 1)


def test_the_load_of_the_shipped_rolling_restart_lasts_until_all_are_replaced() -> None:
    assert load("rolling-restart").load.duration == 0


def test_an_instance_is_not_replaced_because_a_new_controller_knows_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster()
    ended: list[int] = []

    def terminate(pid: int, signal: int) -> None:
        ended.append(pid)
        cluster.blind, cluster.looks = True, 0

    monkeypatch.setattr(faults, "os", SimpleNamespace(kill=terminate))
    fault = Fault(kind="rolling_restart", target="instance", at=0.0)
    cut_short(cluster, fault, when=lambda: cluster.looks > 3)
    assert len(ended) == 1


DRAIN = Fault(kind="drain", target="decode-0", at=0.0)


def test_an_instance_whose_drain_is_cut_short_takes_requests_again() -> None:
    cluster = Cluster()
    done = cut_short(cluster, DRAIN, when=lambda: cluster.becoming)
    assert [one.missed for one in done] == [ENDED]
    assert (cluster.cordoned, cluster.becoming) == (set(), {})


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        ("drain", DRAIN),
        ("afflict", Fault(kind="link", target="decode-0", at=0.0, link="cut=1")),
        ("scale", Fault(kind="scale", target="decode", at=0.0)),
        ("apply", Fault(kind="apply", at=0.0, settings={"scheduler.rest": 3.0})),
    ],
)
def test_a_fault_is_undone_after_a_call_that_was_under_way(call: str, fault: Fault) -> None:
    cluster, gate = Cluster(), Gate()
    cluster.gates[call] = gate
    done = cut_short(cluster, fault, when=gate.reached.is_set, then=gate.open.set)
    assert [one.error for one in done] == [""]
    assert (cluster.cordoned, cluster.afflicted.get("decode-0", "")) == (set(), "")
    assert (cluster.sizes["decode"], cluster.settings) == (2, {"scheduler.rest": 2.0})


def test_an_instance_that_is_about_to_have_another_role_gets_its_own_again() -> None:
    cluster = Cluster()
    fault = Fault(kind="role", target="decode-0", at=0.0)

    def settle() -> None:
        """Whoever is emptied is so by the next look."""
        look = cluster.status

        def status() -> pb.ClusterStatus:
            told = look()
            for name in list(cluster.becoming):
                cluster.emptied(name)
            return told

        cluster.status = status  # type: ignore[method-assign]

    done = cut_short(cluster, fault, when=lambda: cluster.becoming, then=settle)
    assert [one.missed for one in done] == [ENDED]
    assert cluster.roles["decode-0"] == "decode"
    assert (cluster.cordoned, cluster.becoming) == (set(), {})


def test_a_role_that_was_not_changed_is_a_fault_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    monkeypatch.setattr(faults, "SETTLED", 0.05)
    monkeypatch.setattr(cluster, "change_role", lambda name, role: None)
    running = injector(cluster)
    asyncio.run(running.run((Fault(kind="role", target="decode-0", at=0.0),)))
    assert [one.error for one in running.done] == ["decode-0 did not settle in 0.05 s"]


def test_it_is_over_when_all_is_undone() -> None:
    """One fault has nothing to undo, and another takes its time."""
    cluster, gate = Cluster(), Gate()
    cluster.gates["cordon"] = gate
    later = Fault(kind="kill", at=600.0)
    over: list[bool] = []

    async def main() -> None:
        harm = asyncio.create_task(injector(cluster).run((later, DRAIN)))
        await until(lambda: cluster.becoming)
        harm.cancel()
        await until(gate.reached.is_set)
        over.append(harm.done())
        gate.open.set()
        await asyncio.wait([harm])

    asyncio.run(main())
    assert over == [False]
    assert cluster.cordoned == set()


def test_what_cannot_be_undone_is_told_and_keeps_no_run_from_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster()

    def refuse(name: str, *, on: bool) -> None:
        raise RefusedError(f"{name} is draining")

    monkeypatch.setattr(cluster, "cordon", refuse)
    again = Fault(kind="drain", target="decode-0", at=0.0, every=0.001, count=3)
    done = cut_short(cluster, again, when=lambda: cluster.becoming)
    assert [one.error for one in done] == ["decode-0 is draining"]


def test_a_drain_that_another_began_is_left_to_him(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()

    def refuse(name: str) -> None:
        cluster.cordoned.add(name)
        raise RefusedError(f"{name} is being drained already")

    monkeypatch.setattr(cluster, "drain", refuse)
    running = injector(cluster)
    asyncio.run(running.run((DRAIN,)))
    assert [one.error for one in running.done] == ["decode-0 is being drained already"]
    assert cluster.cordoned == {"decode-0"}


def test_the_error_of_a_call_is_told_even_if_nobody_waits_any_more() -> None:
    gate = Gate()

    def refused() -> None:
        gate.pass_through()
        raise RefusedError("no")

    async def main() -> None:
        calling = asyncio.create_task(to_its_end(refused))
        await until(gate.reached.is_set)
        calling.cancel()
        gate.open.set()
        with pytest.raises(RefusedError, match="no"):
            await calling

    asyncio.run(main())
