"""Wrong variants of a function: its own source with one piece replaced."""

from __future__ import annotations

import inspect
import sys
import textwrap

import pytest


def mutate(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, old: str, new: str) -> None:
    """Put in place of the method `name` of `owner` the same with `old` (which must be there) as `new`."""
    source = textwrap.dedent(inspect.getsource(inspect.getattr_static(owner, name)))
    assert source.count(old) >= 1, f"{owner.__name__}.{name} has no {old!r}"
    names: dict[str, object] = {}
    code = "from __future__ import annotations\n" + source.replace(old, new)
    exec(code, vars(sys.modules[owner.__module__]), names)
    monkeypatch.setattr(owner, name, names[name])
