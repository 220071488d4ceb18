"""Quantities and durations: every unit, exact both ways, and nothing without a unit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.units import counted, format_duration, format_quantity, parse_duration, parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("256Mi", 256 * 2**20),
        ("1.5Gi", 3 * 2**29),
        ("8k", 8000),
        ("0B", 0),
        ("1Ti", 2**40),
        ("2G", 2 * 10**9),
    ],
)
def test_a_quantity_is_read_in_bytes(text: str, value: int) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("250ms", 0.25), ("5s", 5.0), ("2m", 120.0), ("1h", 3600.0), ("1.5s", 1.5)]
)
def test_a_duration_is_read_in_seconds(text: str, value: float) -> None:
    assert parse_duration(text) == pytest.approx(value, abs=0)


@pytest.mark.parametrize(
    "text", ["", "256", "Mi", "256 Mi", "-1Mi", "1e3Mi", "256MiB", "256mi", "٣Mi", "1Mi\n"]
)
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        parse_quantity(text)


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "-5s", "5sec", "5S", "inf s", "5s "])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=2**50))
def test_a_formatted_quantity_reads_back_the_same(value: int) -> None:
    assert parse_quantity(format_quantity(value)) == value


@given(st.integers(min_value=0, max_value=10**7))
def test_a_formatted_duration_reads_back_the_same(milliseconds: int) -> None:
    value = milliseconds / 1000
    assert parse_duration(format_duration(value)) == pytest.approx(value, rel=1e-12)


@given(st.floats(min_value=1e-6, max_value=1e9))
def test_every_duration_down_to_a_microsecond_reads_back_the_same(value: float) -> None:
    assert parse_duration(format_duration(value)) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "shown"),
    [("0.05ms", "0.00005s"), ("0.001ms", "0.000001s"), ("0s", "0ms"), ("57ms", "57ms"), ("1.5ms", "0.0015s")],
)
def test_a_short_duration_is_written_without_an_exponent(text: str, shown: str) -> None:
    assert format_duration(parse_duration(text)) == shown


def test_what_no_number_can_hold_is_refused() -> None:
    for parse, unit in ((parse_duration, "s"), (parse_quantity, "B")):
        with pytest.raises(ValueError, match="too"):
            parse("9" * 400 + unit)


def test_a_number_agrees_with_its_noun() -> None:
    assert [counted(n, "object") for n in (0, 1, 2)] == ["0 objects", "1 object", "2 objects"]
    assert counted(1, "request was", "requests were") == "1 request was"
    assert counted(2, "request was", "requests were") == "2 requests were"
