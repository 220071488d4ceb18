"""Who is right when a Pool and the controller differ: a pure decision, and what a Pool's status says.

agreed     the size on which both agreed last (.status.autoscaledReplicas)
── .spec.replicas differs from it: somebody's explicit wish, which goes to the controller
── only the controller differs: its own decision, or the command line's, which goes into .spec.replicas

Bounds go the same two ways; .status.minReplicas and .status.maxReplicas say on which both agreed last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster import control_pb2 as pb
from k8s.yaml_text import Object


@dataclass(frozen=True)
class Wish:
    """Scale the controller's pool; `takes_over` ends autoscaling. `refused` says why it is not done."""

    replicas: int
    takes_over: bool = False
    refused: str = ""


@dataclass(frozen=True)
class Mirror:
    """Write the controller's target into .spec.replicas."""

    replicas: int


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


def decide(spec: Object, status: Object, target: int) -> Wish | Mirror | None:
    """What to do; None when both agree."""
    wanted = int(spec.get("replicas", 1))
    automatic = bool(spec.get("autoscale", True))
    agreed = status.get("autoscaledReplicas")
    if wanted == target:
        return None
    if (agreed is None and automatic) or agreed == wanted:
        return Mirror(target)
    return Wish(wanted, takes_over=automatic, refused=_refusal(spec, wanted))


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


def _refusal(spec: Object, wanted: int) -> str:
    bounds = Bounds.wanted(spec)
    if not bounds.least <= wanted <= bounds.most:
        return f"{wanted} replicas are not within minReplicas {bounds.least} and maxReplicas {bounds.most}"
    return ""


def status_of(
    pool: Object, found: pb.Pool, *, selector: str, agreed: int | None, refused: str, now: str
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
        status["autoscaledReplicas"] = agreed
    bounds = Bounds.agreed(present)
    if Bounds.wanted(pool["spec"]) == Bounds.present(found):
        bounds = Bounds.present(found)
    if bounds is not None:
        status["minReplicas"], status["maxReplicas"] = bounds.least, bounds.most
    ready = found.ready == found.target and found.ready > 0
    conditions = (
        (
            "Ready",
            ready,
            "AtTarget" if ready else "NotAtTarget",
            f"{found.ready} of {found.target} are ready",
        ),
        ("Draining", found.draining > 0, "Draining" if found.draining else "Idle", f"{found.draining} drain"),
        ("Refused", bool(refused), "Refused" if refused else "Accepted", refused or "the target is kept"),
    )
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
