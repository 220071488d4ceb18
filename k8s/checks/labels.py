"""Label selectors as Kubernetes reads them: what each wants, who has it, and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from k8s.checks.manifest import items, mapping

Labels = Mapping[str, str | None]
"""The labels of a pod; None is a value that is known only when the pod runs."""


@dataclass(frozen=True)
class Requirement:
    """One line of a selector; `operator` is In, NotIn, Exists or DoesNotExist."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.operator == "In" and len(self.values) == 1:
            return f"{self.key}: {self.values[0]}"
        return " ".join((self.key, self.operator, ", ".join(self.values))).rstrip()

    def holds(self, labels: Labels) -> bool:
        """A value that is not known yet may be the one that is wanted."""
        found = labels.get(self.key)
        if found is None and self.key in labels:
            return True
        if self.operator in ("Exists", "DoesNotExist"):
            return (found is not None) == (self.operator == "Exists")
        return (found in self.values) == (self.operator != "NotIn")


def requirements(selector: object) -> tuple[Requirement, ...]:
    """What a LabelSelector wants; nothing, which every pod has, if it is empty."""
    found = [Requirement(key, "In", (str(value),)) for key, value in mapping(selector, "matchLabels").items()]
    for each in filter(mapping, items(selector, "matchExpressions")):
        values = tuple(str(value) for value in items(each, "values"))
        found.append(Requirement(str(each.get("key")), str(each.get("operator")), values))
    return tuple(found)


def selects(wanted: Iterable[Requirement], labels: Labels) -> bool:
    return all(each.holds(labels) for each in wanted)


def unmet(wanted: Iterable[Requirement], known: Sequence[Labels]) -> list[Requirement]:
    """The requirements that not one of these meets, each taken alone."""
    return [each for each in wanted if not any(each.holds(labels) for labels in known)]


def meant(wanted: Requirement, known: Sequence[Labels]) -> str:
    """The value, or the key with the same value, for which a requirement that nobody meets may be a slip.

    "" if nothing comes near.
    """
    if wanted.operator != "In" or not wanted.values:
        return ""
    values = {value for labels in known if (value := labels.get(wanted.key)) is not None}
    keys = {key for labels in known for key, value in labels.items() if value in wanted.values}
    close = [
        *difflib.get_close_matches(wanted.values[0], sorted(values), n=1, cutoff=0.8),
        *difflib.get_close_matches(wanted.key, sorted(keys), n=1, cutoff=0.8),
    ]
    return close[0] if close else ""
