"""The configuration: layers, origins, and messages that say where, what was expected and what was meant."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from cluster.config import Config, load, read
from cluster.config_layers import Resolved
from cluster.config_schema import field_names, holds_section, json_schema, markdown
from engine.errors import ConfigError

NOTHING = Path("/nonexistent/tandem.yaml")


def resolve(
    tmp_path: Path,
    text: str = "",
    *,
    environment: dict[str, str] | None = None,
    overrides: dict[str, object] | None = None,
    system: str | None = None,
) -> Resolved[Config]:
    file = tmp_path / "tandem.yaml"
    file.write_text(text)
    system_file = NOTHING
    if system is not None:
        system_file = tmp_path / "system.yaml"
        system_file.write_text(system)
    return read(file, overrides, environment=environment or {}, system_file=system_file)


def problems(tmp_path: Path, text: str, **layers: dict[str, str]) -> list[str]:
    """Messages without the pictures, and with the file's folder cut off."""
    found = resolve(tmp_path, text, **layers).problems  # type: ignore[arg-type]
    return [str(one).splitlines()[0].replace(f"{tmp_path}/", "") for one in found]


def value(resolved: Resolved[Config]) -> Config:
    assert resolved.config is not None, resolved.problems
    return resolved.config


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert value(resolve(tmp_path)) == Config()


def test_a_section_whose_lines_are_all_commented_out_says_nothing(tmp_path: Path) -> None:
    assert value(resolve(tmp_path, "engine:\n  # token_budget: 3\npools:\n  decode:\n")) == Config()


def test_json_carries_every_value_exactly() -> None:
    config = Config.model_validate(
        {
            "engine": {"kv_memory": 3 * 2**20 + 1},
            "control": {"beat": 0.1, "token": "t"},
            "transfer": {"lease": 90.5},
        }
    )
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().engine.token_budget = 3  # type: ignore[misc]


GOLDEN = [
    ("engine: {token_budgt: 1}", "1:10: engine.token_budgt: unknown key, did you mean \"token_budget\"?"),
    ("gatway: {}", "1:1: gatway: unknown key, did you mean \"gateway\"?"),
    ("port: 80", '1:1: port: unknown key here, did you mean "gateway.port"?'),
    (
        "log: {qqq: 1}",
        "1:7: log.qqq: unknown key, expected one of level, format",
    ),
    ("log:\n  level: info\n  level: debug", "3:3: log.level: key is given twice, first in line 2"),
    (
        'pools:\n  decode:\n    replicas: "two"',
        '3:15: pools.decode.replicas: expected integer ≥ 0 and ≤ 1024, got "two"',
    ),
    (
        "pools:\n  decode:\n    min_replicas: 3",
        "3:5: pools.decode: 2 replicas are not within min_replicas 3 and max_replicas 64: change one of them",
    ),
    (
        "pools: {prefill: {replicas: 0}}",
        "1:18: pools.prefill: 0 replicas are not within min_replicas 1 and max_replicas 64: "
        "change one of them",
    ),
    (
        "scheduler:\n  crowded_below: 10.0",
        "2:3: scheduler: crowded_below is 10 and roomy_above 6: what is crowded would take requests, and "
        "instances swap them for ever: lower crowded_below or raise roomy_above",
    ),
    ('engine: {token_budget: "8"}', '1:24: engine.token_budget: expected integer ≥ 1, got "8"'),
    ("engine: {token_budget: true}", "1:24: engine.token_budget: expected integer ≥ 1, got true"),
    ("engine: {token_budget: 1.5}", "1:24: engine.token_budget: expected integer ≥ 1, got 1.5"),
    ("engine: {prefix_cache: 1}", "1:24: engine.prefix_cache: expected true or false, got 1"),
    ("engine: {threads: 0}", "1:19: engine.threads: expected integer ≥ 1 or null, got 0"),
    (
        "engine: {kv_memory: 256}",
        "1:21: engine.kv_memory: expected quantity with its unit, such as 256Mi, got 256",
    ),
    (
        "engine: {kv_memory: 1Ki}",
        '1:21: engine.kv_memory: expected quantity ≥ 1Mi with its unit, such as 256Mi, got "1Ki"',
    ),
    (
        "control: {beat: 5}",
        "1:17: control.beat: expected duration with its unit, such as 250ms or 5s, got 5",
    ),
    (
        "control: {beat: 0s}",
        '1:17: control.beat: expected duration > 0ms with its unit, such as 250ms or 5s, got "0s"',
    ),
    (
        "model: {dtype: fp16}",
        '1:16: model.dtype: expected one of auto, float32, bfloat16, float16, got "fp16"',
    ),
    (
        "log: 3",
        "1:6: log: expected a mapping with the keys level, format, got 3",
    ),
    (
        "pools: {decode: {resources: {GPU: many}}}",
        '1:35: pools.decode.resources.GPU: expected number ≥ 0, got "many"',
    ),
    ("gateway: {api_keys: [a, 1]}", "1:25: gateway.api_keys.1: expected text, got 1"),
    ("gateway: {api_keys: a}", '1:21: gateway.api_keys: expected a list of text, got "a"'),
    ("gateway: {port: 70000}", "1:17: gateway.port: expected integer ≥ 0 and ≤ 65535, got 70000"),
    ("engine: {threads: .inf}", "1:19: engine.threads: expected integer ≥ 1 or null, got Infinity"),
    ("- a", "1:1: expected a mapping of sections"),
    ("engine: {1: 2}", "1:10: engine: expected a name as key, got 1"),
    ("log: {<<: {}}", "1:7: log: expected a name as key, got << (merge keys are not supported"),
    ("engine: {device: !!python/name:os.system x}", "1:18: engine.device: not a plain value: "),
    ("log: {level: info", "1:18: not valid YAML: "),
    ("log: &a {level: *a}", "1:6: log.level: an alias must not contain itself"),
    ("log: {level: debug}\n---\nlog: {}", "2:1: not valid YAML: "),
    ("log:\n\tlevel: info", "2:1: not valid YAML: "),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), GOLDEN, ids=[text.splitlines()[-1] for text, _ in GOLDEN])
def test_a_mistake_is_told_with_its_place_and_what_was_expected(
    tmp_path: Path, text: str, message: str
) -> None:
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith(f"tandem.yaml:{message}")


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "log: {level: loud}\nlog: {}\nengine: {block_size: 17, kv_memory: 1}\nx: 1\n"
    assert [one.split(":")[1] for one in problems(tmp_path, text)] == ["1", "2", "3", "3", "4"]


def test_a_mistake_is_shown_with_its_line_and_a_caret(tmp_path: Path) -> None:
    found = resolve(tmp_path, "pools:\n  decode: {replicas: two}\n").problems
    assert str(found[0]).splitlines()[1:] == ["      decode: {replicas: two}", "                         ^"]


def test_load_raises_every_mistake_in_one_error(tmp_path: Path) -> None:
    file = tmp_path / "tandem.yaml"
    file.write_text("x: 1\ny: 2\n")
    with pytest.raises(ConfigError, match=r"tandem.yaml:1:1: x: (.|\n)*tandem.yaml:2:1: y: "):
        load(file)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"/nonexistent/tandem\.yaml: cannot be read: No such file"):
        load(NOTHING)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"log:\n  \xff")
    with pytest.raises(ConfigError, match=r"x\.yaml:2:3: not UTF-8 text"):
        load(tmp_path / "x.yaml")


def test_a_file_too_large_for_a_config_is_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(ConfigError, match=r"x\.yaml: larger than 1 MiB"):
        load(tmp_path / "x.yaml")


def test_a_file_nested_too_deeply_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("pools:\n  decode: " + "[" * 5000)
    with pytest.raises(ConfigError, match=r"x\.yaml: not valid YAML: nested too deeply"):
        load(tmp_path / "x.yaml")


def test_a_flag_is_named_as_it_was_typed() -> None:
    with pytest.raises(ConfigError, match=r"^--port: gateway\.port: "):
        load(None, {"gateway.port": 80000}, flags={"gateway.port": "--port"})


def test_a_later_layer_wins_and_is_the_origin(tmp_path: Path) -> None:
    resolved = resolve(
        tmp_path,
        "pools: {decode: {replicas: 3}}\nengine: {token_budget: 64}\nlog: {level: debug}",
        system="pools: {decode: {replicas: 9}, prefill: {replicas: 4}}",
        environment={"TANDEM_ENGINE__TOKEN_BUDGET": "65", "TANDEM_LOG__LEVEL": "error"},
        overrides={"log.level": "warning"},
    )
    config = value(resolved)
    assert (config.pools.prefill.replicas, config.pools.decode.replicas) == (4, 3)
    assert (config.engine.token_budget, config.log.level) == (65, "warning")
    origins = {
        ".".join(path): origin.replace(f"{tmp_path}/", "") for path, origin in resolved.origins.items()
    }
    assert origins["pools.prefill.replicas"] == "system.yaml:1:52"
    assert origins["pools.decode.replicas"] == "tandem.yaml:1:28"
    assert origins["engine.token_budget"] == "TANDEM_ENGINE__TOKEN_BUDGET"
    assert origins["log.level"] == "--set log.level"
    assert origins["gateway.port"] == "default"


def test_origins_name_every_value(tmp_path: Path) -> None:
    paths = resolve(tmp_path).origins
    assert ("engine", "block_size") in paths
    assert all(holds_section(Config, *path) is None for path in paths)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "TANDEM_POOLS__DECODE__REPLICAS",
            "two",
            'pools.decode.replicas: expected integer ≥ 0 and ≤ 1024, got "two"',
        ),
        ("TANDEM_POOLS__DECODE__REPLICA", "2", 'pools.decode.replica: unknown key, did you mean "replicas"?'),
        ("TANDEM_ENGINE__THREADS", "[", 'engine.threads: not a YAML value: "["'),
    ],
)
def test_a_mistake_in_a_variable_names_the_variable(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    assert problems(tmp_path, "", environment={name: text}) == [f"{name}: {message}"]


def test_variables_that_kubernetes_defines_for_a_service_named_tandem_are_ignored(tmp_path: Path) -> None:
    environment = {"TANDEM_PORT": "tcp://10.0.0.1:8000", "TANDEM_SERVICE_HOST": "10.0.0.1"}
    assert value(resolve(tmp_path, environment=environment)) == Config()


def test_variables_are_read_as_yaml(tmp_path: Path) -> None:
    environment = {"TANDEM_POOLS__DECODE__RESOURCES": "{GPU: 0.5}", "TANDEM_ENGINE__THREADS": "null"}
    config = value(resolve(tmp_path, "engine: {threads: 3}", environment=environment))
    assert config.pools.decode.resources == {"GPU": 0.5}
    assert config.engine.threads is None


def test_the_shown_config_is_a_valid_file_with_the_same_meaning(tmp_path: Path) -> None:
    config = value(resolve(tmp_path, "engine: {kv_memory: 100Mi}\ncontrol: {beat: 75ms}"))
    text = yaml.safe_dump(config.model_dump(mode="json"))
    assert value(resolve(tmp_path, text)) == config


def test_the_json_schema_accepts_the_defaults_and_refuses_an_unknown_key() -> None:
    schema = json_schema(Config)
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    assert check.is_valid(Config().model_dump(mode="json"))
    assert not check.is_valid({"engine": {"kv_memory": 256}})
    assert not check.is_valid({"engin": {}})


def test_the_committed_documentation_is_that_of_the_schema() -> None:
    committed = Path(__file__).parents[2] / "docs/configuration.md"
    assert committed.read_text() == markdown(Config), "run `make docs`"


def test_every_key_is_described() -> None:
    def check(path: tuple[str, ...]) -> None:
        for name in field_names(Config, path):
            section = holds_section(Config, *path)
            assert section is not None
            if holds_section(Config, *path, name) is None:
                assert section.model_fields[name].description, (*path, name)
            else:
                check((*path, name))

    check(())
