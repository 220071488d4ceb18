"""Who is right when a Pool and the controller differ: a pure decision, and what a Pool's status says.

agreed     the size on which both agreed last (.status.autoscaledReplicas), who sets it, and whether somebody
           asked for that (the condition Autoscaling)
── .spec.replicas or .spec.autoscale differs from it: somebody's explicit wish, which goes to the controller
── only the controller differs: its own decision, or the command line's, which goes into .spec
── only the controller differs, and has no more than its settings say, for it is new: what somebody asked for
   before goes to it

Bounds go the same ways; .status.minReplicas and .status.maxReplicas say on which both agreed last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster import control_pb2 as pb
from k8s.yaml_text import Object

AUTOSCALING = "Autoscaling"
ASKED, CONFIGURED = "Asked", "Configured"


@dataclass(frozen=True)
class Wish:
    """Scale the controller's pool, which ends autoscaling there; without `replicas`, turn that on.

    With `takes_over` the Pool still says that the controller sets the size. `refused` says why it is not
    done.
    """

    replicas: int | None
    takes_over: bool = False
    refused: str = ""


@dataclass(frozen=True)
class Mirror:
    """Write the controller's target into .spec.replicas, and whether it sets that into .spec.autoscale."""

    replicas: int
    automatic: bool


@dataclass(frozen=True)
class Agreed:
    """The size on which both agreed last, and whether the controller sets it.

    What was `asked` for, of either end, outlives a controller; what is only its settings' does not.
    """

    replicas: int
    automatic: bool
    asked: bool = False

    @classmethod
    def last(cls, spec: Object, status: Object) -> Agreed | None:
        """None before both agreed for the first time.

        A status of an older version does not say who sets the size. .spec.autoscale was false then only where
        somebody had asked for a size.
        """
        replicas = status.get("autoscaledReplicas")
        if replicas is None:
            return None
        for each in status.get("conditions") or []:
            if each["type"] == AUTOSCALING:
                return cls(int(replicas), each["status"] == "True", each["reason"] == ASKED)
        return cls(int(replicas), automatic(spec), not automatic(spec))


@dataclass(frozen=True)
class Bounds:
    """The fewest and the most instances that a pool may have."""

    least: int
    most: int

    @classmethod
    def wanted(cls, spec: Object) -> Bounds:
        return cls(int(spec.get("minReplicas", 1)), int(spec.get("maxReplicas", 64)))

    @classmethod
    def present(cls, pool: pb.Pool) -> Bounds:
        """Those that the controller keeps."""
        return cls(pool.least, pool.most)

    @classmethod
    def agreed(cls, status: Object) -> Bounds | None:
        """None before both agreed for the first time."""
        if "minReplicas" not in status or "maxReplicas" not in status:
            return None
        return cls(int(status["minReplicas"]), int(status["maxReplicas"]))


def size(spec: Object) -> int:
    """What the Pool says now."""
    return int(spec.get("replicas", 1))


def automatic(spec: Object) -> bool:
    """Whether the Pool says that the controller sets the size."""
    return bool(spec.get("autoscale", True))


def decide(spec: Object, status: Object, found: pb.Pool) -> Wish | Mirror | None:
    """What to do; None when both agree."""
    wanted, given = size(spec), automatic(spec)
    if (wanted, given) == (found.target, found.autoscale):
        return None
    last, mirror = Agreed.last(spec, status), Mirror(found.target, found.autoscale)
    if last is None:
        return mirror if given else _sized(spec, wanted)
    if given and not last.automatic:
        return mirror if found.autoscale else Wish(None)
    if wanted != last.replicas:
        return _sized(spec, wanted)
    if not given and last.automatic:
        return _sized(spec, found.target)
    if last.asked and not found.sized and not (given and found.autoscale):
        return Wish(None) if given else _sized(spec, wanted)
    return mirror


def settled(spec: Object, status: Object, done: Wish | Mirror | None, found: pb.Pool) -> Agreed:
    """On what both agree once the decision is carried out."""
    if isinstance(done, Wish):
        return Agreed(size(spec), done.replicas is None, asked=True)
    last = Agreed.last(spec, status)
    return Agreed(found.target, found.autoscale, found.sized or (last is not None and last.asked))


def takes_bounds(spec: Object, status: Object, found: pb.Pool) -> bool:
    """Whether the Pool shall take the controller's bounds.

    Only what somebody asked the controller for: one that is new has its settings', and the Pool outlives it.
    A Pool on whose bounds both have never agreed states them when it is new, and not when it is only of an
    older version.
    """
    wanted, agreed = Bounds.wanted(spec), Bounds.agreed(status)
    if wanted == Bounds.present(found) or not found.bounded:
        return False
    return agreed == wanted or (agreed is None and "autoscaledReplicas" in status)


def _sized(spec: Object, wanted: int) -> Wish:
    bounds, refused = Bounds.wanted(spec), ""
    if not bounds.least <= wanted <= bounds.most:
        refused = f"{wanted} replicas are not within minReplicas {bounds.least} and maxReplicas {bounds.most}"
    return Wish(wanted, takes_over=automatic(spec), refused=refused)


def status_of(
    pool: Object, found: pb.Pool, *, selector: str, agreed: Agreed | None, refused: str, now: str
) -> Object:
    """The status that a Pool should have; conditions keep the time of their last change."""
    present = pool.get("status", {})
    status: dict[str, Any] = {
        "replicas": found.ready + found.starting,
        "readyReplicas": found.ready,
        "selector": selector,
        "observedGeneration": pool["metadata"].get("generation", 0),
    }
    if agreed is not None:
        status["autoscaledReplicas"] = agreed.replicas
    bounds = Bounds.agreed(present)
    if Bounds.wanted(pool["spec"]) == Bounds.present(found):
        bounds = Bounds.present(found)
    if bounds is not None:
        status["minReplicas"], status["maxReplicas"] = bounds.least, bounds.most
    ready = found.ready == found.target
    conditions = [
        (
            "Ready",
            ready,
            "AtTarget" if ready else "NotAtTarget",
            f"{found.ready} of {found.target} are ready",
        ),
        ("Draining", found.draining > 0, "Draining" if found.draining else "Idle", f"{found.draining} drain"),
        ("Refused", bool(refused), "Refused" if refused else "Accepted", refused or "the target is kept"),
    ]
    if agreed is not None:
        who = "the controller sets the size" if agreed.automatic else "the size is set by hand"
        conditions.append((AUTOSCALING, agreed.automatic, ASKED if agreed.asked else CONFIGURED, who))
    status["conditions"] = [_condition(present, *each, now=now) for each in conditions]
    return status


def is_refused(pool: Object) -> bool:
    """Whether the Pool's status says so already."""
    conditions = pool.get("status", {}).get("conditions") or []
    return any(each["type"] == "Refused" and each["status"] == "True" for each in conditions)


def _condition(present: Object, kind: str, holds: bool, reason: str, message: str, *, now: str) -> Object:
    value = "True" if holds else "False"
    earlier = [each for each in present.get("conditions") or [] if each["type"] == kind]
    changed = not earlier or earlier[0]["status"] != value
    since = now if changed else earlier[0]["lastTransitionTime"]
    return {"type": kind, "status": value, "lastTransitionTime": since, "reason": reason, "message": message}
