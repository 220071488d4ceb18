"""Who sets a pool's size, carried both ways, and what of it outlives a controller."""

from __future__ import annotations

import pytest

from tests.k8s.scene import Scene
from tests.k8s.servers import Server


@pytest.fixture
def scene(server: Server) -> Scene:
    return Scene(server)


@pytest.mark.parametrize("autoscale", [True, False])
def test_a_size_from_the_command_line_is_mirrored_and_who_sets_it_too(scene: Scene, autoscale: bool) -> None:
    """`tandem scale decode --replicas 7`, then `--auto`."""
    scene.pool(replicas=2, autoscale=autoscale)
    scene.rounds()
    scene.control.scale("decode", 7)
    told = list(scene.control.calls)
    scene.rounds(2)
    assert scene.sizes() == (7, False)
    scene.control.scale("decode", automatic=True)
    scene.rounds(2)
    assert scene.sizes() == (7, True)
    assert scene.control.calls == told, "it is not told what it said"


def test_a_pool_that_turns_autoscaling_off_keeps_the_size_that_is_there(scene: Scene) -> None:
    scene.pool()
    scene.rounds()
    scene.control.targets["decode"] = 4
    scene.rounds()
    scene.api.merge(scene.path, {"spec": {"autoscale": False}})
    scene.rounds(2)
    assert "decode" not in scene.control.automatic
    assert (scene.sizes(), scene.control.targets["decode"]) == ((4, False), 4)
    assert scene.events().count("AutoscalingOff") == 1


def test_a_pool_that_turns_autoscaling_on_gives_the_size_to_the_controller(scene: Scene) -> None:
    scene.pool()
    scene.rounds()
    scene.scale(5)
    scene.rounds()
    scene.api.merge(scene.path, {"spec": {"autoscale": True}})
    scene.rounds()
    assert "decode" in scene.control.automatic
    scene.control.targets["decode"] = 3
    scene.rounds()
    assert scene.sizes() == (3, True)
    assert scene.events().count("AutoscalingOn") == 1


def test_who_sets_the_size_is_a_condition(scene: Scene) -> None:
    scene.pool()
    scene.rounds()
    told = scene.condition("Autoscaling")
    assert (told["status"], told["reason"], told["message"]) == (
        *("True", "Configured", "the controller sets the size"),
    )
    scene.scale(5)
    scene.rounds()
    told = scene.condition("Autoscaling")
    assert (told["status"], told["reason"], told["message"]) == ("False", "Asked", "the size is set by hand")


@pytest.mark.parametrize("automatic", [True, False])
def test_a_size_that_was_asked_for_outlives_the_controller(scene: Scene, automatic: bool) -> None:
    """A new image, or a head that was lost: the new controller has its settings' size."""
    scene.pool()
    scene.rounds()
    scene.scale(6)
    scene.rounds(2)
    scene.control.begin_anew(2, automatic=automatic)
    scene.rounds(2)
    assert (scene.sizes(), scene.control.targets["decode"]) == ((6, False), 6)
    assert "decode" not in scene.control.automatic


def test_a_size_from_the_command_line_outlives_the_controller_too(scene: Scene) -> None:
    scene.pool()
    scene.rounds()
    scene.control.scale("decode", 6)
    scene.rounds(2)
    scene.control.begin_anew(2, automatic=True)
    scene.rounds(2)
    assert (scene.sizes(), scene.control.targets["decode"]) == ((6, False), 6)


def test_a_size_that_nobody_asked_for_is_the_new_controller_s(scene: Scene) -> None:
    scene.control.begin_anew(2, automatic=False)
    scene.pool()
    scene.rounds(2)
    assert scene.sizes() == (2, False)
    scene.control.begin_anew(3, automatic=False)
    scene.rounds(2)
    assert (scene.sizes(), scene.control.calls) == ((3, False), [])
    scene.control.begin_anew(3, automatic=True)
    scene.rounds(2)
    assert (scene.sizes(), scene.control.calls) == ((3, True), [])


def test_autoscaling_that_was_asked_for_outlives_the_controller(scene: Scene) -> None:
    scene.control.begin_anew(2, automatic=False)
    scene.pool()
    scene.rounds()
    scene.api.merge(scene.path, {"spec": {"autoscale": True}})
    scene.rounds()
    scene.control.begin_anew(2, automatic=False)
    scene.rounds(2)
    assert scene.sizes() == (2, True)
    assert "decode" in scene.control.automatic


def test_a_wish_of_an_older_operator_outlives_the_controller(scene: Scene) -> None:
    """Its status does not say who sets the size; its Pool says that nobody but a person does."""
    scene.pool()
    scene.rounds()
    scene.scale(6)
    scene.rounds()
    left = [each for each in scene.read()["status"]["conditions"] if each["type"] != "Autoscaling"]
    scene.api.merge(f"{scene.path}/status", {"status": {"conditions": left}})
    scene.control.begin_anew(2, automatic=False)
    scene.rounds(2)
    assert (scene.sizes(), scene.control.targets["decode"]) == ((6, False), 6)
