"""Free mappings of the config, such as the limits of tenants: one setting each, whatever their names are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import get_origin

import pytest
from pydantic import BaseModel

from cluster.applying import apply
from cluster.config import Config, load
from cluster.config_schema import setting_of, settings
from cluster.config_yaml import Path
from cluster.settings_change import INSTANCES, RESTART, differences, flat, with_settings
from tests.cluster.made_up import CONFIG, Fleet, controlling, run, seen

DOTTED = {"acme.eu": 2, "*": 1}


def free_mappings(model: type[BaseModel], path: Path = ()) -> Iterator[Path]:
    """All that the config's classes declare."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if get_origin(kind) is dict:
            yield (*path, name)
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from free_mappings(kind, (*path, name))


FREE = [".".join(path) for path in free_mappings(Config)]


def test_there_are_some() -> None:
    assert {"pools.decode.resources", "security.tenants.requests", "engine.tenant_weights"} <= set(FREE)


@pytest.mark.parametrize("name", FREE)
def test_each_is_one_setting(name: str) -> None:
    path = tuple(name.split("."))
    config = load(None, {name: DOTTED})
    data = config.model_dump(mode="json")
    assert dict(settings(Config, data))[path] == DOTTED
    assert flat(data)[name] == DOTTED
    assert setting_of(Config, (*path, "acme.eu")) == setting_of(Config, path) == path
    assert with_settings(Config(), flat(data)) == config


@pytest.mark.parametrize("name", FREE)
def test_what_has_changed_in_one_is_said_and_done_whole(name: str) -> None:
    before, after = load(None, {name: {"gone": 3}}), load(None, {name: DOTTED})
    (change,) = differences(before, after)
    assert change.path == name
    assert (json.loads(change.before), json.loads(change.after)) == ({"gone": 3}, DOTTED)
    assert with_settings(before, {change.path: json.loads(change.after)}) == after


def test_every_other_value_is_its_own_setting() -> None:
    found = dict(settings(Config, Config().model_dump(mode="json")))
    assert found["pools", "decode", "autoscale", "enabled"] is False
    assert setting_of(Config, ("pools", "decode", "replicas")) == ("pools", "decode", "replicas")


def test_sections_and_dotted_keys_may_be_mixed() -> None:
    given = {"security.tenants": {"requests": {"acme.eu": 5}}, "pools": {"decode.replicas": 3}}
    assert flat(given) == {"security.tenants.requests": {"acme.eu": 5}, "pools.decode.replicas": 3}


def test_an_empty_mapping_takes_everything_away() -> None:
    assert flat({"security": {"tenants": {"requests": {}}}}) == {"security.tenants.requests": {}}


def test_weights_of_tenants_with_dots_are_applied_and_taken_away_again() -> None:
    async def test() -> None:
        async with controlling(Fleet()) as controller:
            await seen(controller, "ready", 3)
            (change,) = (await apply(controller, {"engine.tenant_weights": {"acme.eu": 2.0}})).changes
            assert (change.path, change.effect) == ("engine.tenant_weights", INSTANCES)
            assert controller.config.engine.tenant_weights == {"acme.eu": 2.0}
            (change,) = (await apply(controller, {"engine.tenant_weights": {"b": 1.0}})).changes
            assert change.before == '{"acme.eu": 2.0}'
            assert controller.config.engine.tenant_weights == {"b": 1.0}
            named = {"security.tenants.requests": {"acme.eu": 600}}
            (change,) = (await apply(controller, named)).changes
            assert (change.path, change.effect) == ("security.tenants.requests", RESTART)
            assert controller.config.security == CONFIG.security

    run(test())
