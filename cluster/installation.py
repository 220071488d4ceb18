"""Tells whether tandem's packages are tandem's: their names are common, and another package may shadow one.

Uses the standard library only, so that it runs before anything of ours is imported.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

PACKAGES = (
    "cluster", "decode_pool", "engine", "global_scheduler", "k8s", "kernels", "migration", "model",
    "prefill_pool",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[1]


def installed_version() -> str:
    """tandem's version, as its installation says."""
    try:
        return version("tandem-serving")
    except PackageNotFoundError:
        return "unknown"


def faults(packages: tuple[str, ...] = PACKAGES, root: Path = ROOT) -> list[str]:
    """One sentence for each package of ours that this process would take from elsewhere."""
    found = []
    for name in packages:
        fault = _fault(name, root)
        if fault:
            found.append(fault)
    return found


def _fault(name: str, root: Path) -> str | None:
    ours = root / name
    spec = find_spec(name)
    if spec is None:
        return f"tandem's package {name} is missing from {root}: install tandem-serving again"
    places = [Path(place).resolve() for place in spec.submodule_search_locations or ()]
    if places != [ours]:
        place = spec.origin or ", ".join(map(str, places))
        return f"the name {name} leads to {place} and not to tandem's {ours}: {_remedy(name)}"
    # Ours are empty, so one with content was written by another distribution over ours.
    if (ours / "__init__.py").stat().st_size:
        return f"another package was installed over tandem's {ours}: {_remedy(name)}"
    return None


def _remedy(name: str) -> str:
    others = [one for one in packages_distributions().get(name, ()) if one != "tandem-serving"]
    if others:
        return f"uninstall {', '.join(sorted(set(others)))}, or give tandem an environment of its own"
    return "take that folder out of PYTHONPATH, or give tandem an environment of its own"
