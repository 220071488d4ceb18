"""The forms of -o: the global flag holds for every verb, mistakes are told in JSON, a watch prints lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from typer.main import get_command

from cluster.cli.failures import Exit, Failure
from cluster.cli.main import build, wants_json
from cluster.cli.manual import manual
from cluster.cli.options import Listing, Root
from tests.cluster.cli_controller import Controller, run


def verbs(group: Any, context: Any) -> Iterator[tuple[str, Any, Any]]:
    """Path, command and context of every verb and sub-verb."""
    for name in group.list_commands(context):
        verb = group.get_command(context, name)
        inner = verb.context_class(verb, info_name=name, parent=context)
        if hasattr(verb, "list_commands"):
            yield from verbs(verb, inner)
        else:
            yield inner.command_path, verb, inner


def given(form: Listing) -> dict[str, tuple[Any, Any]]:
    """Of each verb that has forms: its -o, and its context below a global -o."""
    top: Any = get_command(build())
    context = top.context_class(top, info_name="tandem", obj=Root(output=form, as_json=form is Listing.JSON))
    return {
        path: (parameter, inner)
        for path, verb, inner in verbs(top, context)
        for parameter in verb.params
        if "-o" in parameter.opts and parameter.metavar is None
    }


FORMS = given(Listing.JSON)


def form_of(parameter: Any, context: Any) -> str:
    """That of a verb which is called without a -o of its own."""
    try:
        value, _ = parameter.handle_parse_result(context, {}, [])
    except Failure as failed:
        return "refused" if failed.exit_code == Exit.USAGE else str(failed)
    return str(value)


def test_verbs_of_every_kind_are_looked_at() -> None:
    assert {"tandem config show", "tandem simulate", "tandem k8s lint", "tandem bench papers"} <= set(FORMS)


@pytest.mark.parametrize("path", FORMS)
def test_a_global_json_is_honoured_or_refused(path: str) -> None:
    assert form_of(*FORMS[path]) in ("json", "refused")


def test_config_show_prints_json_where_the_global_flag_says_so(state_home: object) -> None:
    assert json.loads(run("-o", "json", "config", "show").stdout)["kind"] == "Config"
    assert run("-o", "name", "config", "show").exit_code == Exit.USAGE


@pytest.mark.parametrize(
    "line",
    [
        "-o json get foo",
        "-o json scale decode --replicas x",
        "-o json foo",
        "-o json --bogus status",
        "get foo --output=json",
        "status --bogus -ojson",
        "-o json --token-file /nowhere/at/all status",
    ],
)
def test_a_wrong_command_line_is_told_in_json_and_ends_with_2(line: str) -> None:
    told = run(*line.split())
    assert told.exit_code == Exit.USAGE
    assert list(json.loads(told.stdout)) == ["error"]
    assert set(json.loads(told.stdout)["error"]) == {"code", "message", "hint"}
    assert not told.stderr


def test_without_json_a_wrong_command_line_is_told_on_stderr() -> None:
    told = run("-o", "json", "get", "foo", "-o", "table")
    assert (told.exit_code, told.stdout) == (Exit.USAGE, "")
    assert "foo" in told.stderr


@pytest.mark.parametrize(
    ("words", "asked"),
    [("-o json", True), ("-o json x -o table", False), ("-o", False), ("--output json", True), ("", False)],
)
def test_the_last_form_on_a_line_counts(words: str, asked: bool) -> None:
    assert wants_json(words.split()) == asked


def looks(monkeypatch: pytest.MonkeyPatch, module: str, times: int) -> None:
    """End a watch after so many looks."""
    left = iter(range(times - 1))

    def sleep(seconds: float) -> None:
        if next(left, None) is None:
            raise Failure(Exit.OK, "over", "over", after_data=True)

    monkeypatch.setattr(f"{module}.time.sleep", sleep)


@pytest.mark.parametrize(("verb", "module"), [("get pools", "get"), ("status", "status")])
def test_a_watch_prints_a_line_of_json_a_look(
    controller: Controller, monkeypatch: pytest.MonkeyPatch, verb: str, module: str
) -> None:
    looks(monkeypatch, f"cluster.cli.{module}", 3)
    told = run(*verb.split(), "-w", "-o", "json")
    lines = [json.loads(line) for line in told.stdout.splitlines()]
    assert len(lines) == 3
    assert {line["apiVersion"] for line in lines} == {"tandem.dev/v1"}


def test_a_watch_prints_a_document_of_yaml_a_look(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks(monkeypatch, "cluster.cli.get", 2)
    told = run("get", "pools", "-w", "-o", "yaml")
    assert [one["kind"] for one in yaml.safe_load_all(told.stdout)] == ["PoolList", "PoolList"]


@pytest.mark.parametrize(
    "verb",
    ["status", "version", "events", "describe pool/decode", "scale decode --replicas 2 --dry-run"],
)
def test_yaml_says_what_json_says(controller: Controller, verb: str) -> None:
    said = json.loads(run(*verb.split(), "-o", "json").stdout)
    assert yaml.safe_load(run("-o", "yaml", *verb.split()).stdout) == said
    assert yaml.safe_load(run(*verb.split(), "-o", "yaml").stdout) == said


def test_wide_is_a_table_where_there_is_no_more_to_show(controller: Controller) -> None:
    table = run("version").stdout
    assert run("version", "-o", "wide").stdout == table
    assert run("-o", "wide", "version").stdout == table


def test_a_deadline_has_one_default_in_the_help() -> None:
    assert "default: control.drain_timeout." in manual()
    assert "[default: 0s]" not in manual()


@pytest.mark.parametrize(
    ("verb", "title"),
    [
        ("status", "POOL"),
        ("events", "SUBJECT"),
        ("get pools", "TARGET"),
        ("version", "COMPONENT"),
        ("config show --origin", "ORIGIN"),
        ("describe pool/decode", "INSTANCE"),
        ("rebalance --dry-run", "DOWNTIME"),
    ],
)
def test_no_headers_holds_for_every_table(controller: Controller, verb: str, title: str) -> None:
    assert title in run(*verb.split()).stdout
    bare = run("--no-headers", *verb.split()).stdout
    assert bare and title not in bare
    assert title in run(*verb.split()).stdout, "it holds for one command"


def test_the_titles_of_get_are_its_own(controller: Controller) -> None:
    assert "TARGET" in run("--no-headers", "get", "pools", "--headers").stdout
    assert "TARGET" not in run("get", "pools", "--no-headers").stdout
