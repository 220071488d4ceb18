"""A folder of derived files that all processes of a machine share: built once, under a lock, then renamed.

<folder>/<key>          an entry: a directory that exists only complete
<folder>/<key>.lock     held while one process builds the entry
<folder>/<key>.<pid>    an entry being built, deleted by the next builder if its process died
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import SetupError

_REMEDY = "name another cache folder, or none to keep weights in each instance's own memory"


class CacheFolder:
    """Entries by key. Errors of the file system come out as SetupError with the folder and the remedy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entry(self, key: str) -> Path:
        """Where the entry lies, whether it exists or not."""
        return self.folder / key

    def ensure(self, key: str, whole: Callable[[Path], bool], build: Callable[[Path], None]) -> Path:
        """The directory of an entry, built if it is absent or `whole` finds it damaged.

        `build` fills an empty directory. Processes that ask at the same time wait for one to build.
        Raises SetupError if the entry is absent and cannot be written.
        """
        entry = self.entry(key)
        if entry.is_dir() and whole(entry):
            return entry
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder / f"{key}.lock"):
                if not (entry.is_dir() and whole(entry)):
                    self._replace(entry, build)
        except OSError as error:
            raise _explained(self.folder, error) from error
        return entry

    def _replace(self, entry: Path, build: Callable[[Path], None]) -> None:
        for leftover in self.folder.glob(f"{entry.name}.[0-9]*"):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh = self.folder / f"{entry.name}.{os.getpid()}"
        fresh.mkdir()
        try:
            build(fresh)
            _flush(fresh)
            if entry.exists():
                shutil.rmtree(entry)
            fresh.rename(entry)
            _flush_directory(self.folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def check_space(folder: Path, needed: int) -> None:
    """Raises OSError (no space) at once, rather than after writing most of `needed` bytes."""
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, f"{needed / 2**20:.0f} MiB are needed", str(folder))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an advisory lock, which the kernel releases when the process ends in any way."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _flush(folder: Path) -> None:
    """Force files and their directory to disk, so that a rename never outlives its contents in a crash."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _flush_directory(folder)


def _flush_directory(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explained(folder: Path, error: OSError) -> SetupError:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            why = f"no space is left in the cache folder {folder} ({error}): free some, or"
        case errno.EROFS | errno.EACCES | errno.EPERM:
            why = f"the cache folder {folder} cannot be written ({error}):"
        case _:
            why = f"the cache folder {folder} cannot be used ({error}):"
    return SetupError(f"{why} {_REMEDY}")
