"""A process that loads a model through a cache folder: `packing_child.py MODEL CACHE LOG [hang]`.

Appends a line to LOG when it packs weights; with `hang` it stops in the middle of that. Prints "packing"
when it begins to pack and "loaded <how often the weights are mapped> <digest>" at the end.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

from model import packed_cache
from model.runner import ModelRunner


def main(model: str, cache: str, log: str, hang: bool) -> None:
    right = packed_cache._write

    def write(folder: Path, *arguments: Any) -> None:
        with open(log, "a") as file:
            file.write("packed\n")
        say("packing")
        if hang:
            (folder / "weights.safetensors").write_bytes(b"half")
            threading.Event().wait()
        right(folder, *arguments)

    packed_cache._write = write
    runner = ModelRunner(model, cache=Path(cache), blocks=1)
    maps = Path("/proc/self/maps").read_text().splitlines()
    say(f"loaded {sum('weights.safetensors' in line for line in maps)} {runner.weights_digest}")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:4], hang="hang" in sys.argv)
