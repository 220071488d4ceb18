"""What users and the cluster name is printed as it is: no markup, no emoji, no command of a terminal."""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from google.protobuf.message import Message
from rich.console import Console

from cluster import control_pb2 as pb
from cluster.bench.page import Section, show
from cluster.cli.failures import Exit
from cluster.cli.greeting import print_addresses
from cluster.cli.output import messages, out, shown, styled, table
from cluster.cli.progress import Steps
from cluster.config import Config
from cluster.local_state import LocalState
from tests.cluster.cli_controller import Controller, recorded, run

NAME = "[red]x[/red] :smile: \x1b[31m[/]"
PLAIN = "[red]x[/red] :smile: ?[31m[/]"
MEANING = {"effect": "instances"}
"""Fields whose values the verbs know."""
ROOT = Path(__file__).resolve().parents[2]

M = TypeVar("M", bound=Message)


def named(message: M) -> M:
    """Every text in it is the name, and it has one of everything."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        if field.message_type is not None:
            inner = getattr(message, field.name)
            named(inner.add() if field.is_repeated else inner)
        elif field.type == field.TYPE_STRING:
            value = MEANING.get(field.name, NAME)
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)
    return message


class Named(Controller):
    """Names everything so."""

    def GetStatus(self, request: pb.StatusRequest, context: Any) -> pb.ClusterStatus:
        status = named(pb.ClusterStatus())
        status.instances[0].status.blocks_total = 1
        status.gateways[0].lately.requests = 1
        return status

    def GetTimelines(self, request: pb.TimelinesRequest, context: Any) -> pb.TimelineList:
        found = named(pb.TimelineList())
        found.timelines[0].phases[0].name = "decode"
        return found

    def GetRequests(self, request: pb.RequestsRequest, context: Any) -> pb.RequestList:
        return named(pb.RequestList())

    def Rebalance(self, request: pb.RebalanceRequest, context: Any) -> pb.RebalanceReply:
        return named(pb.RebalanceReply())

    def Restart(self, request: pb.RestartRequest, context: Any) -> pb.RestartReply:
        return named(pb.RestartReply())

    def Apply(self, request: pb.ApplyRequest, context: Any) -> pb.ApplyReply:
        return named(pb.ApplyReply())

    def Explain(self, request: pb.ExplainRequest, context: Any) -> pb.ExplanationList:
        return named(pb.ExplanationList())

    def Cordon(self, request: pb.CordonRequest, context: Any) -> pb.Instance:
        return named(pb.Instance())


@pytest.fixture
def everything(state_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Controller]:
    monkeypatch.setenv("COLUMNS", "2000")
    served = Named(
        config={"model": {"name": PLAIN}},
        events=[named(pb.Event(id=1))],
        moved=named(pb.Migration(id=1)),
        replaced=[NAME],
    )
    with recorded(served):
        yield served


VERBS = {
    ("status",): 11,
    ("events",): 3,
    ("events", "-w"): 3,
    ("explain", "x"): 4,
    ("get", "pools"): 1,
    ("get", "instances", "-o", "wide"): 5,
    ("get", "requests", "-o", "wide"): 4,
    ("get", "migrations", "-o", "wide"): 7,
    ("get", "events"): 3,
    ("get", "events", "-o", "name"): 0,
    ("get", "requests", "-o", "name"): 1,
    ("describe", "pool", NAME): 6,
    ("describe", "instance", NAME): 17,
    ("describe", "request", NAME): 13,
    ("rebalance",): 3,
    ("rebalance", "--dry-run"): 3,
    ("config", "diff", "--set", "log.level=debug"): 4,
    ("config", "show", "--running", "--origin"): 1,
    ("apply", "--set", "log.level=debug", "--dry-run"): 4,
    ("restart", "all", "--dry-run"): 1,
    ("migrate", "mine", "--to", NAME, "--wait"): 0,
    ("cordon", "x"): 1,
}
"""Each verb, and how often it prints the name at least."""


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_prints_names_as_they_are(everything: Controller, verb: tuple[str, ...]) -> None:
    result = run(*verb)
    assert result.exit_code in (Exit.OK, Exit.FAILED), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stdout.count(PLAIN) >= VERBS[verb], result.output
    assert "\x1b" not in result.output and "😄" not in result.output
    assert result.output.count(" x ") == 0


def test_an_error_of_the_cluster_is_printed_as_it_is(everything: Controller) -> None:
    told = run("migrate", NAME, "--to", "decode-1")
    assert told.exit_code == Exit.NOT_FOUND
    assert "no request '[red]x[/red] :smile: \\x1b[31m[/]' runs" in told.stderr


def test_a_table_is_plain_on_whatever_console_it_is_printed() -> None:
    rows = table(NAME, "B")
    rows.add_row(NAME, styled(("seen", "bold"), f" {NAME}"))
    lines = plainly(rows).splitlines()
    assert [line.count(PLAIN) for line in lines] == [1, 2]


def test_a_report_of_a_benchmark_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    section = Section(NAME, (NAME, "B"), ((NAME, NAME),), NAME)
    show(out(), NAME, [section])
    assert capsys.readouterr().out.count(PLAIN) == 6


def test_a_step_is_plain_on_a_terminal_and_off_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with Steps(messages()).step(NAME):
        pass
    assert capsys.readouterr().err.count(PLAIN) == 2
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with Steps(messages()).step("[red]x[/red] :smile:"):
        pass
    assert capsys.readouterr().err.count("[red]x[/red] :smile:") >= 2, "while it lasts, and when it is done"


def test_the_greeting_names_the_model_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    state = LocalState(pid=1, cluster="x", scratch="/x", gateways=["http://127.0.0.1:1"], model=NAME)
    print_addresses(state, Config())
    assert f"{PLAIN} is served at http://127.0.0.1:1" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["ä → ½ \t [x]", "two\nlines"])
def test_what_can_be_printed_is_not_changed(text: str) -> None:
    assert shown(text) == text


@pytest.mark.parametrize("sign", ["\x00", "\x07", "\x1b", "\x9b", "\r", "‮"])
def test_a_sign_that_a_terminal_obeys_becomes_a_question_mark(sign: str) -> None:
    assert shown(f"a{sign}b") == "a?b"


def test_no_verb_makes_a_table_or_a_console_of_its_own() -> None:
    """So that what is shown above of `table`, `out` and `messages` holds for all of them."""
    found = {
        f"{file.relative_to(ROOT)}: {node.func.id}"
        for folder in ("cluster/cli", "cluster/bench", "cluster/chaos", "k8s")
        for file in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id in ("Table", "Console")
    }
    assert not found


def plainly(what: Any) -> str:
    """How rich's own console prints it, which obeys markup."""
    console = Console(file=io.StringIO(), width=200)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
