"""What the tests of `tandem k8s lint` plant: mistakes in the rendered objects, and how each is found."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from cluster.config import Config
from k8s.checks.kinds import Kinds
from k8s.lint import Report, lint
from k8s.render import base
from k8s.yaml_text import dump_all

DECODE = "groupName: decode"


@cache
def clean() -> str:
    """Everything that the base applies but the dashboards, which are long and have no rules."""
    return dump_all(
        each for found in base(Config()).values() for each in found if each["kind"] != "ConfigMap"
    )


def check(text: str, kinds: Kinds) -> Report:
    return lint([(text, "m.yaml")], kinds)


@dataclass(frozen=True)
class Mistake:
    """`old` becomes `new`; the problem is at the line that has `line` (`new` by default), with `message`."""

    old: str
    new: str
    message: str
    line: str = ""
    after: str = ""
    also: tuple[str, str] | None = None

    def planted(self) -> tuple[str, int]:
        """The text with the mistake, and the number of its line."""
        text = clean()
        start = text.index(self.after) if self.after else 0
        for old, new in filter(None, ((self.old, self.new), self.also)):
            assert old in text[start:], f"there is no {old!r}"
            text = text[:start] + text[start:].replace(old, new, 1)
        wanted = self.line or self.new.splitlines()[0]
        return text, text.count("\n", 0, text.index(wanted, start)) + 1


def assert_named(mistake: Mistake, kinds: Kinds) -> None:
    text, line = mistake.planted()
    found = [str(problem).splitlines()[0] for problem in check(text, kinds).problems]
    here = [each for each in found if re.match(rf"m\.yaml:{line}:\d+: ", each) and mistake.message in each]
    assert here, f"line {line} with {mistake.message!r} is not among\n" + "\n".join(found)
