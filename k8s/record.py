"""The list of what a rendering wrote into a folder, by which the next one knows what to take away.

listed before, not rendered now ─┬─ as it was written ─▶ removed
                                 └─ changed since     ─▶ refused by name, and nothing is written at all

`sha256sum --check rendered.sha256` reads it too.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from engine.errors import SetupError

RECORD = "rendered.sha256"
LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
REMEDY = "remove it, or render into an empty folder"


def text(tree: Mapping[str, str]) -> str:
    """The list for a tree of texts by their paths."""
    return "".join(f"{_digest(tree[name].encode())}  {name}\n" for name in sorted(tree))


def stale(folder: Path, tree: Mapping[str, str], overlays: Iterable[str]) -> list[Path]:
    """The files in `folder` that an earlier rendering wrote and that `tree` does not have.

    Raises SetupError, with the name, for one that was changed since, and for what is left of one of the
    `overlays` by a version of tandem that kept no list: who wrote that cannot be told.
    """
    found, changed = [], []
    for name, digest in _listed(folder / RECORD).items():
        path = folder / name
        if name in tree or not _is_inside(path, folder):
            continue
        if _digest(path.read_bytes()) == digest:
            found.append(path)
        else:
            changed.append(f"{path}: a rendering wrote it, this one does not, and it was changed since")
    if not (folder / RECORD).exists():
        kept = {name.split("/")[1] for name in tree if name.startswith("overlays/")}
        changed += [
            f"{folder}/overlays/{name}: this config has no such overlay, and no {RECORD} tells who wrote it"
            for name in sorted(set(overlays) - kept)
            if (folder / "overlays" / name).exists()
        ]
    if changed:
        raise SetupError("\n".join(f"{each}; {REMEDY}" for each in changed))
    return found


def remove(paths: Iterable[Path], folder: Path) -> None:
    """Remove files, and the folders below `folder` that are empty then."""
    for path in paths:
        path.unlink()
        for parent in path.parents:
            if parent == folder:
                break
            with contextlib.suppress(OSError):  # something else is in it
                parent.rmdir()


def _listed(record: Path) -> dict[str, str]:
    """Digests by path. Raises SetupError for a list that no rendering wrote."""
    if not record.exists():
        return {}
    listed = {}
    for number, line in enumerate(record.read_text(encoding="utf-8").splitlines(), 1):
        match = LINE.fullmatch(line)
        if match is None or match[2].startswith("/") or ".." in PurePosixPath(match[2]).parts:
            raise SetupError(f"{record}:{number}: not what `tandem k8s render` writes there; {REMEDY}")
        listed[match[2]] = match[1]
    return listed


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether it is a file of the folder itself, by no link that leads elsewhere."""
    if not path.is_file() or path.is_symlink():
        return False
    return path.resolve() == folder.resolve() / path.relative_to(folder)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
