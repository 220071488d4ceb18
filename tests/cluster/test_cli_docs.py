"""docs/cli.md is current, and what the other pages and the README print can be typed."""

from __future__ import annotations

import platform
import re
import shlex
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from cluster.cli.failures import Exit
from cluster.cli.main import build
from cluster.cli.manual import CODES, manual
from cluster.serve_schema import faults

ROOT = Path(__file__).resolve().parents[2]
UPGRADES = (ROOT / "docs/upgrades.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", UPGRADES, re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def printed(page: Path) -> list[str]:
    """The tandem commands in the fenced blocks of a page, each on one line; `text` is what is printed."""
    text = page.read_text(encoding="utf-8").replace("\\\n", "")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = "\n".join(block for kind, block in blocks if kind != "text").splitlines()
    bare = (line.strip().removeprefix("$ ") for line in lines)
    return [line for line in bare if line.startswith("tandem ")]


COMMANDS = {f"{page.name}: {line}": line for page in PAGES if page.name != "cli.md" for line in printed(page)}


def test_the_page_of_the_command_line_is_current() -> None:
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert page == manual(), "run `make docs`"


def test_the_page_names_every_verb_and_every_exit_code() -> None:
    page = manual()
    root: Any = get_command(build())
    verbs = root.list_commands(None)
    assert len(verbs) > 25
    shown = [name for name in verbs if not root.get_command(None, name).hidden]
    assert [name for name in shown if f"### tandem {name}\n" not in page] == []
    assert set(CODES) == set(Exit)


def test_the_page_is_the_same_on_every_host() -> None:
    assert "[default: (this host's name)]" in manual()
    assert platform.node() not in re.findall(r"\[default: (.*?)\]", manual())


def test_what_the_other_pages_name_is_on_the_page() -> None:
    assert "#### tandem k8s leave\n" in manual()


@pytest.mark.parametrize("line", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_printed_command_has_the_verbs_and_flags_of_the_command_line(line: str) -> None:
    words = list(
        takewhile(lambda word: word not in ("|", ">", "&", "&&", "||"), shlex.split(line, comments=True))
    )[1:]
    verb: Any = get_command(build())
    of_all = {flag: parameter for parameter in verb.params for flag in parameter.opts}
    while words[0] in of_all:
        words = words[1 if of_all[words[0]].is_flag else 2 :]
    while hasattr(verb, "get_command") and words:
        verb = verb.get_command(None, words.pop(0))
    known = {flag for parameter in verb.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert [word for word in words if word.startswith("-") and word not in known] == []


def test_printed_serve_configs_are_ones_that_serve_takes() -> None:
    found = [yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml"]
    assert len(found) == 2
    whole, gateways = found
    whole["applications"][0]["deployments"] += gateways["deployments"]
    assert list(faults(whole)) == []
