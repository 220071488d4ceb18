"""Global flags before the verb or behind it; one that the verb has itself is its own there."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from cluster.cli.failures import Exit
from cluster.cli.main import build
from cluster.cli.manual import manual
from cluster.cli.options import Root
from tests.cluster.cli_controller import TOKEN, Controller, run
from tests.cluster.test_cli_output import verbs

GLOBAL = ("quiet", "verbose", "color", "yes", "headers", "timeout", "address", "token", "token_file", "tls")


def test_every_verb_takes_every_global_flag_or_has_one_of_its_own() -> None:
    top: Any = get_command(build())
    context = top.context_class(top, info_name="tandem", obj=Root())
    for path, verb, _ in verbs(top, context):
        own = {parameter.name for parameter in verb.params}
        known = {name for parameter in verb.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert not {f"--{name.replace('_', '-')}" for name in GLOBAL} - known, path
        assert len(own) == len(verb.params), f"{path} has a flag twice"


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize(
    ("flags", "verb"), [("-q", "rebalance"), ("--quiet", "trace export"), ("-q", "drain decode-0 --wait")]
)
def test_quiet_holds_in_both_places(controller: Controller, place: str, flags: str, verb: str) -> None:
    words = [*flags.split(), *verb.split()] if place == "before" else [*verb.split(), *flags.split()]
    told = run(*words)
    assert told.exit_code == 0 and not told.stderr, told.output
    assert run(*verb.split()).stderr, "it would have said something"


def test_titles_and_colours_hold_behind_the_verb(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR")
    assert "KIND" in run("events").stdout
    assert "KIND" not in run("events", "--no-headers").stdout
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" in run("status").stdout
    assert "\x1b" not in run("status", "--color", "never").stdout


def test_verbose_behind_the_verb_says_what_is_asked(controller: Controller) -> None:
    try:
        assert "Status at" in run("status", "-v").stderr
    finally:
        logging.getLogger("tandem").handlers = []


def test_a_token_may_come_from_a_file_behind_the_verb(controller: Controller, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("wrong\n")
    there = ("--address", controller.address)
    assert run("status", *there, "--token-file", str(file)).exit_code == Exit.AUTH
    file.write_text(f"{TOKEN}\n")
    assert run("status", *there, "--token-file", str(file)).exit_code == 0
    assert run("status", *there, "--token-file", "/none/at/all").exit_code == Exit.USAGE


def test_what_a_verb_calls_so_itself_is_its_own(controller: Controller) -> None:
    """`scale --timeout` is how long to wait for instances, the global one how long an answer may take."""
    controller.stuck = True
    told = run("scale", "decode", "--replicas", "3", "--wait", "--timeout", "300ms")
    assert told.exit_code == Exit.TIMEOUT
    assert "ready after 0.3 s" in told.stderr
    assert run("status", "--timeout", "5").exit_code == Exit.USAGE, "a duration has a unit"
    assert run("status", "--timeout", "5s").exit_code == 0


def test_what_a_verb_cannot_print_it_does_not_take_behind_it(controller: Controller) -> None:
    assert run("cordon", "decode-0", "-o", "name").exit_code == Exit.USAGE
    for verb in ("logs", "down"):
        told = run(verb, "-o", "json")
        assert (told.exit_code, json.loads(told.stdout)["error"]["code"]) == (Exit.USAGE, "usage")
    assert "`-o` only behind a verb that prints data" in manual()


def test_the_page_names_them_once() -> None:
    assert manual().count("No messages, only data and errors.") == 1
