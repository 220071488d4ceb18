"""Calls of functions in the text of an answer: found however it is cut, and nothing lost that is none."""

from __future__ import annotations

import json
import random

import pytest

from cluster.tool_calls import Call, CallReader


def call(name: str = "look", **arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def read(pieces: list[str]) -> tuple[str, list[Call]]:
    reader = CallReader("mine/0")
    told = [*map(reader.push, pieces), reader.end()]
    return "".join(one.text for one in told), [found for one in told for found in one.calls]


def summary(calls: list[Call]) -> list[tuple[int, str, object]]:
    return [(one.number, one.name, json.loads(one.arguments)) for one in calls]


WRONG = [
    '{"name": "a", "arguments": "no JSON"}',
    '{"name": "a", "arguments": {"x": NaN}}',
    '{"name": "a", "arguments": [1]}',
    '{"name": "\\ud800", "arguments": {}}',
]
TEXTS: list[tuple[str, str, list[tuple[int, str, object]]]] = [
    ("", "", []),
    ("plain < text <tool <tool_calls>", "plain < text <tool <tool_calls>", []),
    (f"Well. {call(city='Oslo')}", "Well. ", [(0, "look", {"city": "Oslo"})]),
    (f"{call(a=1)}\n\n{call('go')}\n", "", [(0, "look", {"a": 1}), (1, "go", {})]),
    (f"{call(a=1)} and then", "and then", [(0, "look", {"a": 1})]),
    (call(text="</tool_call> <tool_call> 🦊"), "", [(0, "look", {"text": "</tool_call> <tool_call> 🦊"})]),
    (
        '<tool_call>[{"name": "a", "arguments": {}}, {"name": "b"}]</tool_call>',
        "",
        [(0, "a", {}), (1, "b", {})],
    ),
    ('<tool_call>{"name": "a", "arguments": "{\\"x\\": 1}"}</tool_call>', "", [(0, "a", {"x": 1})]),
    ("<tool_call>no JSON</tool_call> more", "<tool_call>no JSON</tool_call> more", []),
    ('<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>', []),
    ("<tool_call>[]</tool_call>", "<tool_call>[]</tool_call>", []),
    ('so <tool_call>\n{"name": "a", "argum', 'so <tool_call>\n{"name": "a", "argum', []),
    ("ends <tool_ca", "ends <tool_ca", []),
    (f"<tool_call>{WRONG[0]}</tool_call>", f"<tool_call>{WRONG[0]}</tool_call>", []),
    (f"<tool_call>{WRONG[1]}</tool_call>", f"<tool_call>{WRONG[1]}</tool_call>", []),
    (f"<tool_call>{WRONG[2]}</tool_call>", f"<tool_call>{WRONG[2]}</tool_call>", []),
    (f"<tool_call>{WRONG[3]}</tool_call>", f"<tool_call>{WRONG[3]}</tool_call>", []),
    (r'<tool_call>{"name": "a", "arguments": {"x": "\ud83d"}}</tool_call>', "", [(0, "a", {"x": "\ud83d"})]),
]


@pytest.mark.parametrize(("text", "shown", "calls"), TEXTS, ids=range(len(TEXTS)))
def test_calls_are_found_however_the_text_is_cut(
    text: str, shown: str, calls: list[tuple[int, str, object]]
) -> None:
    rng = random.Random(7)
    cuts = [[text], list(text)]
    for _ in range(20):
        places = sorted(rng.randrange(len(text) + 1) for _ in range(4))
        cuts.append([text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)])
    for pieces in cuts:
        found_text, found = read(pieces)
        assert (found_text, summary(found)) == (shown, calls), pieces


def test_text_before_a_call_is_told_at_once_but_for_what_may_be_its_beginning() -> None:
    reader = CallReader("mine/0")
    assert reader.push("Let me see <tool").text == "Let me see "
    assert reader.push("box>").text == "<toolbox>"
    assert reader.push(f" {call()}"[:-1]).calls == ()
    assert [one.name for one in reader.push(">").calls] == ["look"]


def test_ids_are_the_same_for_who_reads_again_and_differ_otherwise() -> None:
    text = call() + call()
    (first, second), again = read([text])[1], read(list(text))[1]
    assert [first, second] == again
    assert first.id != second.id
    other = CallReader("mine/1").push(text).calls
    assert {first.id, second.id}.isdisjoint(one.id for one in other)
    assert CallReader("mine/0").push(call(turn=2)).calls[0].id != first.id, "of another turn with that name"
    for one in CallReader("mine/0").push(TEXTS[-1][0]).calls:
        one.arguments.encode()


def test_a_long_call_costs_what_it_is_long() -> None:
    """Each end that makes no sense is looked at once, and nothing is looked through again for each piece."""
    reader = CallReader("mine/0")
    reader.push("<tool_call>")
    for _ in range(20_000):
        reader.push("word ")
    assert reader._looked > 90_000
    assert reader.end().text.startswith("<tool_call>word ")
