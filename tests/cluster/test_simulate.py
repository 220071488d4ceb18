"""tandem simulate: a config and a trace in, the same bytes out, and errors that say what to change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cluster.cli.main import build

MADE = "made:rate=6,prompt=100-400,output=20-60,requests=30"
COEFFICIENTS = {
    "engine": {"model": {"1": {
        "prefill": [18.1, 0.1019, 7.12e-6], "decoding_smallbs": [19.9, 6.27e-4, 0.0385],
        "decoding_largebs": [7.17, 5.8e-4, 0.158], "decoding_large_small_bs_threshold": 95,
    }}}
}  # fmt: skip


@pytest.fixture
def cost(tmp_path: Path) -> str:
    file = tmp_path / "coefficients.json"
    file.write_text(json.dumps(COEFFICIENTS))
    return f"{file}:engine=engine,model=model"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(build(), ["simulate", *arguments])


def test_equal_seeds_give_equal_bytes_and_others_don_t(cost: str) -> None:
    one, same, other = (
        run("--trace", MADE, "--cost", cost, "--seed", seed, "-o", "json").stdout for seed in ("1", "1", "2")
    )
    assert one == same != other
    report = json.loads(one)
    assert report["schema"] == "tandem.simulation/1" and report["requests"]["finished"] == 30
    assert report["handoffs"]["moved"] > 0


def test_what_requests_ask_for_can_be_said_and_answers_stay_those_of_the_trace(cost: str) -> None:
    """Who reserves the longest runs fewer at a time then; and where less is asked for, answers end there."""

    def report(*options: str) -> dict[str, Any]:
        reserving = ("--set", "engine.admission=reserve_max", "--kv-tokens", "5000")
        found: dict[str, Any] = json.loads(
            run("--trace", MADE, "--cost", cost, "-o", "json", *reserving, *options).stdout
        )
        return found

    exact, more, less = report(), report("--max-tokens", "2000"), report("--max-tokens", "10")
    tokens = [one["throughput"]["output_tokens"] * one["seconds"] for one in (exact, more, less)]
    assert tokens[1] == pytest.approx(tokens[0]) and tokens[2] == pytest.approx(300)
    assert more["e2e"]["mean"] > 1.5 * exact["e2e"]["mean"]
    assert all(one["invariants"]["every_answer_whole"] for one in (exact, more, less))


def test_two_configs_stand_side_by_side(cost: str, tmp_path: Path) -> None:
    for name, replicas in (("small", 1), ("large", 4)):
        (tmp_path / f"{name}.yaml").write_text(f"pools: {{decode: {{replicas: {replicas}}}}}\n")
    pair = "-f", str(tmp_path / "small.yaml"), "--compare", str(tmp_path / "large.yaml")
    text = run(*pair, "--trace", MADE, "--cost", cost).stdout
    assert "small.yaml" in text and "large.yaml" in text and "time to first token, p99" in text


def test_two_configs_are_one_page_that_fetches_nothing(cost: str, tmp_path: Path) -> None:
    """Curves of both in each chart, and for each who ran when on one instance."""
    for name, replicas in (("small", 1), ("large", 3)):
        (tmp_path / f"{name}.yaml").write_text(f"pools: {{decode: {{replicas: {replicas}}}}}\n")
    pair = "-f", str(tmp_path / "small.yaml"), "--compare", str(tmp_path / "large.yaml")
    page = run(*pair, "--trace", MADE, "--cost", cost, "-o", "html").stdout
    assert page.count("<!doctype html>") == page.count("</html>") == 1
    for title in ("time to first token", "time per output token", "end to end", "waiting requests over time",
                  "instances over time", "small.yaml: the first requests of decode-0",
                  "large.yaml: the first requests of decode-2"):  # fmt: skip
        assert f"<h2>{title}" in page
    assert page.count("<polyline") == 3 * 2 + 3 * 4, "two runs, two pools each"
    assert page.count("<rect") > 30
    assert "src=" not in page and "href=" not in page


def keys(value: object, path: str = "") -> set[str]:
    """Every path in a report; names of pools and tenants are not of the schema."""
    if not isinstance(value, dict) or not value:
        return {path}
    named = path in ("pools", "tenants")
    return {
        found
        for key, one in value.items()
        for found in keys(one, path + (".*" if named else f".{key}" if path else key))
    }


def test_the_page_of_the_simulator_names_every_field(cost: str) -> None:
    """docs/simulator.md is the schema: fields that come or go have to be written there."""
    text = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()
    table = text[text.index("## The report") :]
    named = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
    report = json.loads(run("--trace", MADE, "--cost", cost, "-o", "json").stdout)
    found = {
        path.rsplit(".", 1)[0]
        if path.rsplit(".", 1)[-1] in {"mean", "p50", "p90", "p95", "p99", "max"}
        else path
        for path in keys(report)
    }
    assert found == named
    assert all(report["invariants"].values())


@pytest.mark.parametrize(
    "setting",
    [
        "engine.queue=fair",
        "engine.admission=reserve_max",
        "engine.batch=decode_maximal",
        "engine.tenant_prediction=moving_average",
        "engine.host_memory=1Gi",
        "pools.decode.autoscale.enabled=true",
    ],
)
def test_every_policy_can_be_tried(cost: str, setting: str) -> None:
    result = run("--trace", MADE, "--cost", cost, "--set", setting, "-o", "json")
    assert json.loads(result.stdout)["requests"]["finished"] == 30


@pytest.mark.parametrize("setting", ["engine.queue=mlfq", "engine.batch=stall_free", "engine.batch=slices"])
def test_what_decides_by_the_cost_of_steps_asks_for_it(cost: str, setting: str) -> None:
    refused = run("--trace", MADE, "--cost", cost, "--set", setting)
    assert refused.exit_code == 2 and "engine.step_cost" in refused.stderr
    given = ("--set", "engine.step_cost.per_token=0.1", "--set", "engine.step_cost.floor=20.0")
    assert run("--trace", MADE, "--cost", cost, "--set", setting, *given).exit_code == 0


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        ("nowhere.csv", "cannot be read"),
        ("made:speed=3", "no speed"),
        ("made:rate=0", "made"),
        (f"made:prompt={10**400}~{10**400}", "made"),
    ],
)
def test_a_wrong_workload_is_named(cost: str, trace: str, message: str) -> None:
    result = run("--trace", trace, "--cost", cost)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    "option",
    [
        "--ttft 500",
        "--tpot 5e3",
        "--speed nan",
        "--bandwidth 0",
        "--gpus -1",
        "--overhead -5",
        "--overhead inf",
    ],
)
def test_a_number_that_cannot_be_is_refused_with_its_option(cost: str, option: str) -> None:
    for verb in (["simulate"], ["bench", "ablate"])[
        : 1 + ("gpus" not in option and "overhead" not in option)
    ]:
        told = CliRunner().invoke(build(), [*verb, "--trace", MADE, "--cost", cost, *option.split()])
        assert told.exit_code == 2, told.output
        assert option.split()[0] in told.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "say which, with system=…; it has a100, h100"),
        (":system=foo", "has no system foo; it has a100, h100"),
        (":system=h100", "say which, with model=…; h100 has llama-8b"),
        (":system=h100,model=llama-70b", "has no llama-70b on h100; it has llama-8b tp 1"),
    ],
)
def test_what_a_table_does_not_have_is_named_with_what_it_has(
    options: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "steps.csv"
    head = "system,model,tp,phase,batch,new_tokens_per_request,context_tokens,latency_ms"
    rows = [f"{system},llama-8b,1,prefill,1,128,0,5" for system in ("h100", "a100")]
    file.write_text("\n".join([head, *rows]) + "\n")
    result = run("--trace", MADE, "--cost", f"{file}{options}")
    assert result.exit_code == 2
    assert message in result.stderr


def test_each_policy_that_is_on_is_switched_off_in_turn(cost: str) -> None:
    """And one that is off is not; migration and placement have no setting of their own."""

    def names(*settings: str) -> dict[str, dict[str, object]]:
        given = [word for setting in settings for word in ("--set", setting)]
        arguments = ["bench", "ablate", "--trace", MADE, "--cost", cost, "-o", "json", *given]
        result = CliRunner().invoke(build(), arguments)
        return {item["name"]: item["report"] for item in json.loads(result.stdout)["items"]}

    plain = names("engine.prefix_cache=false")
    assert list(plain) == ["everything", "without prefill where it decodes", "without placement by load",
                           "without live migration"]  # fmt: skip
    more = names("engine.queue=fair", "engine.admission=reserve_max")
    assert {"without the queue", "without reserving the longest", "without the prefix cache"} <= more.keys()
    assert all(report["requests"] == more["everything"]["requests"] for report in more.values())
