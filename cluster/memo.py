"""What a controller leaves with every instance for the next controller, which may be of another version."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace


@dataclass(frozen=True, slots=True)
class Memo:
    """`generation` fences older controllers, `edition` numbers what one of them left. `base` is the digest
    of the settings that the application was deployed with, `changes` what was applied since, by dotted
    path, `declared` the digest of Serve's last `user_config`. `sizes` are the pools' start sizes, `targets`
    those asked for since, `names` the next number of each pool. `scaling` is who sizes each pool within
    which bounds. `marked` are the instances that are to be replaced.
    """

    generation: int = 0
    edition: int = 0
    base: str = ""
    changes: Mapping[str, object] = field(default_factory=dict)
    declared: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    targets: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[str, int] = field(default_factory=dict)
    scaling: Mapping[str, Sequence[int]] = field(default_factory=dict)
    marked: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Memo:
        """What this version knows of it. Raises ValueError for what is no memo."""
        found = json.loads(data)
        if not isinstance(found, dict):
            raise ValueError("not a memo")
        known = {each.name: found[each.name] for each in fields(cls) if each.name in found}
        return cls(**known | {"marked": tuple(known.get("marked", ()))})

    def targets_for(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The targets to go on with: a pool whose start size was changed since begins with that."""
        kept = {role: target for role, target in self.targets.items() if self.sizes.get(role) == sizes[role]}
        return {**sizes, **kept}


class Editions:
    """Numbers a controller's memos, so that the last word is found when some instances have not heard it."""

    def __init__(self) -> None:
        self._last = Memo()

    def number(self, memo: Memo) -> Memo:
        """The memo with its edition: one more than the last wherever it says something else."""
        memo = replace(memo, edition=self._last.edition)
        if memo != self._last:
            self._last = replace(memo, edition=memo.edition + 1)
        return self._last


def latest(memos: Iterable[Memo]) -> Memo:
    """The last word of the last controller; an empty memo where there is none."""
    return max(memos, key=lambda memo: (memo.generation, memo.edition), default=Memo())
