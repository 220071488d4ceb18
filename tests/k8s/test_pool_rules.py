"""Who is right when a Pool and the controller differ: each case by itself, and stories of many of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from cluster import control_pb2 as pb
from k8s.pool_rules import ASKED, AUTOSCALING, CONFIGURED, Agreed, Mirror, Wish, decide, settled, status_of
from k8s.yaml_text import Object

Decide = Callable[[Object, Object, pb.Pool], Wish | Mirror | None]

ON, OFF = True, False


def status(replicas: int, autoscale: bool, *, asked: bool = False) -> Object:
    """What a Pool says when both have agreed on that."""
    condition = {"type": AUTOSCALING, "status": str(autoscale), "reason": ASKED if asked else CONFIGURED}
    return {"autoscaledReplicas": replicas, "conditions": [condition]}


def controller(target: int, autoscale: bool, *, sized: bool = False) -> pb.Pool:
    return pb.Pool(name="decode", target=target, autoscale=autoscale, sized=sized, least=1, most=64)


NEW: Object = {}
OLD: Object = {"autoscaledReplicas": 6}
"""The status of an operator that did not say who sets the size."""

CASES: dict[str, tuple[tuple[int, bool], Object, pb.Pool, Wish | Mirror | None]] = {
    "both agree": ((2, ON), status(2, ON), controller(2, ON), None),
    "a new pool takes what is there": ((1, ON), NEW, controller(2, OFF), Mirror(2, OFF)),
    "a new pool that is sized by hand says how": ((4, OFF), NEW, controller(2, OFF), Wish(4)),
    "a new pool ends autoscaling": ((2, OFF), NEW, controller(2, ON), Wish(2)),
    "autoscaling has decided": ((2, ON), status(2, ON), controller(7, ON), Mirror(7, ON)),
    "kubectl scale": ((5, OFF), status(2, OFF), controller(2, OFF), Wish(5)),
    "kubectl scale ends autoscaling": ((5, ON), status(2, ON), controller(2, ON), Wish(5, takes_over=True)),
    "kubectl scale wins against autoscaling": (
        *((5, ON), status(2, ON), controller(3, ON), Wish(5, takes_over=True)),
    ),
    "what was begun is ended": ((5, OFF), status(2, ON), controller(2, ON), Wish(5)),
    "a wish that was carried out": ((5, OFF), status(2, ON), controller(5, OFF, sized=True), None),
    "tandem scale": ((2, OFF), status(2, OFF), controller(7, OFF, sized=True), Mirror(7, OFF)),
    "tandem scale ends autoscaling": (
        *((2, ON), status(2, ON), controller(7, OFF, sized=True), Mirror(7, OFF)),
    ),
    "tandem scale --auto": (
        (6, OFF),
        status(6, OFF, asked=True),
        controller(6, ON, sized=True),
        Mirror(6, ON),
    ),
    "the switch is turned on": (
        (6, ON),
        status(6, OFF, asked=True),
        controller(6, OFF, sized=True),
        Wish(None),
    ),
    "it was turned on at both ends": (
        *((6, ON), status(6, OFF, asked=True), controller(4, ON, sized=True), Mirror(4, ON)),
    ),
    "turned on, whatever size stands beside it": (
        *((9, ON), status(6, OFF, asked=True), controller(6, OFF, sized=True), Wish(None)),
    ),
    "the switch is turned off": ((3, OFF), status(3, ON), controller(3, ON), Wish(3)),
    "turned off, and the size was another by then": ((3, OFF), status(3, ON), controller(4, ON), Wish(4)),
    "turned off with a size": ((8, OFF), status(3, ON), controller(4, ON), Wish(8)),
    "a new controller, and a size that was asked for": (
        *((6, OFF), status(6, OFF, asked=True), controller(2, OFF), Wish(6)),
    ),
    "a new controller that sizes the pool itself": (
        *((6, OFF), status(6, OFF, asked=True), controller(2, ON), Wish(6)),
    ),
    "a new controller that has the size by chance": (
        *((6, OFF), status(6, OFF, asked=True), controller(6, ON), Wish(6)),
    ),
    "a new controller, and a size of older settings": (
        (2, OFF),
        status(2, OFF),
        controller(3, OFF),
        Mirror(3, OFF),
    ),
    "a new controller, and autoscaling that was asked for": (
        *((4, ON), status(4, ON, asked=True), controller(2, OFF), Wish(None)),
    ),
    "a new controller, and autoscaling of both": (
        *((4, ON), status(4, ON, asked=True), controller(2, ON), Mirror(2, ON)),
    ),
    "a new controller that was told already": (
        *((6, OFF), status(6, OFF, asked=True), controller(3, OFF, sized=True), Mirror(3, OFF)),
    ),
    "an older operator's wish": ((6, OFF), OLD, controller(2, OFF), Wish(6)),
    "an older operator's switch, which nobody kept": ((6, ON), OLD, controller(6, OFF), Mirror(6, OFF)),
    "an older operator, and kubectl scale": ((5, ON), OLD, controller(6, OFF), Wish(5, takes_over=True)),
}


@pytest.mark.parametrize("name", CASES)
def test_who_is_right(name: str) -> None:
    (replicas, autoscale), before, found, wanted = CASES[name]
    assert decide({"replicas": replicas, "autoscale": autoscale}, before, found) == wanted


def test_a_size_outside_the_bounds_is_refused_whoever_asked_for_it() -> None:
    spec = {"replicas": 6, "autoscale": False, "maxReplicas": 4}
    for before in (status(6, OFF, asked=True), status(2, OFF)):
        wish = decide(spec, before, controller(2, OFF))
        assert isinstance(wish, Wish) and "6 replicas are not within" in wish.refused


@pytest.mark.parametrize("agreed", [Agreed(3, ON), Agreed(3, OFF, asked=True)])
def test_a_status_gives_back_on_what_both_agreed(agreed: Agreed) -> None:
    pool: Object = {"metadata": {}, "spec": {}}
    written = status_of(pool, controller(3, ON), selector="", agreed=agreed, refused="", now="now")
    assert Agreed.last({}, written) == agreed


@pytest.mark.parametrize(
    ("target", "ready", "holds"), [(2, 2, "True"), (2, 1, "False"), (0, 0, "True"), (0, 1, "False")]
)
def test_a_pool_is_ready_at_its_target(target: int, ready: int, holds: str) -> None:
    """Also at none, of which a pool that was scaled to 0 is to have no more."""
    found = pb.Pool(name="prefill", target=target, ready=ready, least=0, most=64)
    written = status_of({"metadata": {}, "spec": {}}, found, selector="", agreed=None, refused="", now="now")
    assert {each["type"]: each["status"] for each in written["conditions"]}["Ready"] == holds


@dataclass
class World:
    """A Pool, an operator that is as quick as the rules, and a controller.

    `asked` is what was asked for last, of either end: a size, and whether the controller shall set it.
    """

    decide: Decide
    settings: tuple[int, bool]
    spec: Object = field(default_factory=lambda: {"replicas": 1, "autoscale": True})
    status: Object = field(default_factory=dict)
    sized: bool = False
    asked: tuple[int | None, bool] | None = None

    def __post_init__(self) -> None:
        self.target, self.automatic = self.settings

    @property
    def pool(self) -> tuple[int, bool]:
        return self.spec["replicas"], self.spec["autoscale"]

    def round(self) -> None:
        found = controller(self.target, self.automatic, sized=self.sized)
        done = self.decide(self.spec, self.status, found)
        agreed = settled(self.spec, self.status, done, found)
        if isinstance(done, Mirror):
            self.spec = {"replicas": done.replicas, "autoscale": done.automatic}
        elif isinstance(done, Wish):
            self.spec["autoscale"] = self.spec["autoscale"] and not done.takes_over
            self.scale(done.replicas)
        self.status = status(agreed.replicas, agreed.automatic, asked=agreed.asked)

    def scale(self, replicas: int | None) -> None:
        """What the controller does; None turns autoscaling on."""
        self.target = self.target if replicas is None else replicas
        self.automatic, self.sized = replicas is None, True

    def kubectl_scale(self, random: random.Random) -> None:
        wanted = random.choice([n for n in range(1, 9) if n != self.spec["replicas"]])
        self.spec["replicas"] = wanted
        self.asked = wanted, OFF

    def kubectl_switch(self, random: random.Random) -> None:
        self.spec["autoscale"] = not self.spec["autoscale"]
        self.asked = (None, ON) if self.spec["autoscale"] else (self.target, OFF)

    def tandem_scale(self, random: random.Random) -> None:
        wanted = random.choice([None, *range(1, 9)])
        self.scale(wanted)
        self.asked = wanted, wanted is None

    def load(self, random: random.Random) -> None:
        """Autoscaling decides."""
        self.target = random.randint(1, 8) if self.automatic else self.target

    def upgrade(self, random: random.Random) -> None:
        """A new controller, maybe with other settings."""
        self.settings = random.randint(1, 8), random.random() < 0.5
        (self.target, self.automatic), self.sized = self.settings, False

    def broken(self) -> list[str]:
        """What does not hold when everybody has had time to act."""
        found = []
        if self.pool != (self.target, self.automatic):
            found.append(f"the Pool says {self.pool}, the controller has {self.target, self.automatic}")
        replicas, autoscale = self.asked or self.settings
        if self.automatic != autoscale or (self.asked and replicas not in (None, self.target)):
            found.append(
                f"asked for was {self.asked}, the settings say {self.settings}, {self.target} are there"
            )
        if self.asked is None and not self.automatic and self.target != self.settings[0]:
            found.append(f"{self.target} are there, and nobody asked for other than {self.settings}")
        return found


ACTORS = (World.kubectl_scale, World.kubectl_switch, World.tandem_scale, World.load, World.upgrade)


def story(seed: int, rules: Decide) -> list[str]:
    """Thirty things happen, one after the other; what was broken after any of them."""
    chance = random.Random(seed)
    world = World(rules, (chance.randint(1, 8), chance.random() < 0.5))
    found = []
    for _ in range(30):
        for _ in range(3):
            world.round()
        found += world.broken()
        chance.choice(ACTORS)(world, chance)
    return found


@pytest.mark.parametrize("seed", range(50))
def test_pool_and_controller_agree_on_what_was_asked_for_last(seed: int) -> None:
    assert story(seed, decide) == []


def the_new_controller_is_right(spec: Object, before: Object, found: pb.Pool) -> Wish | Mirror | None:
    told = pb.Pool()
    told.CopyFrom(found)
    told.sized = True
    return decide(spec, before, told)


def the_pool_is_always_right(spec: Object, before: Object, found: pb.Pool) -> Wish | Mirror | None:
    told = pb.Pool()
    told.CopyFrom(found)
    told.sized = False
    return decide(spec, before, told)


def the_switch_says_nothing(spec: Object, before: Object, found: pb.Pool) -> Wish | Mirror | None:
    last = Agreed.last(spec, before)
    return decide({**spec, "autoscale": last.automatic if last else True}, before, found)


def what_is_there_was_asked_for(spec: Object, before: Object, found: pb.Pool) -> Wish | Mirror | None:
    last = Agreed.last(spec, before)
    return decide(spec, status(last.replicas, last.automatic, asked=True) if last else before, found)


@pytest.mark.parametrize(
    "mutant",
    [
        the_new_controller_is_right,
        the_pool_is_always_right,
        the_switch_says_nothing,
        what_is_there_was_asked_for,
    ],
)
def test_other_rules_break_it(mutant: Decide) -> None:
    assert any(story(seed, mutant) for seed in range(20))
