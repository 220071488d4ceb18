"""What the operator does with bounds, budgets and deleted Pools, at the fake API server and at a real one."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from cluster import control_pb2 as pb
from engine.errors import InvalidKey, Unreachable
from k8s import paths
from k8s.budget import LONGEST_PAUSE
from k8s.operator import follow
from tests.k8s.scene import LIVE, Scene
from tests.k8s.servers import Server


@pytest.fixture
def scene(server: Server) -> Scene:
    return Scene(server)


def test_a_wish_outside_the_bounds_is_refused_and_not_clamped(scene: Scene) -> None:
    scene.pool(maxReplicas=3)
    scene.rounds()
    scene.scale(9)
    scene.rounds(2)
    assert scene.control.calls == []
    assert scene.condition("Refused")["status"] == "True"
    assert "9 replicas are not within" in scene.condition("Refused")["message"]


@pytest.mark.parametrize("automatic", [True, False])
def test_a_deleted_pool_leaves_the_instances(scene: Scene, automatic: bool) -> None:
    """As many as there are, which is not what the config starts with."""
    scene.ray(**{"pools.decode.autoscale.enabled": automatic})
    scene.pool(maxReplicas=9)
    before = {"prefill": 3, "decode": 5}
    scene.control.targets |= before
    scene.rounds(2)
    scene.api.delete(scene.path)
    scene.rounds(2)
    assert scene.control.bounds["decode"] == (1, 64), "it was given back"
    assert scene.control.targets == before


def test_a_deleted_pool_goes_back_to_what_the_config_says(scene: Scene) -> None:
    scene.ray(**{"pools.decode.max_replicas": 20, "pools.decode.autoscale.enabled": True})
    scene.pool(minReplicas=2, maxReplicas=9)
    scene.rounds()
    scene.scale(7)
    scene.rounds()
    assert "decode" not in scene.control.automatic
    scene.api.delete(scene.path)
    scene.rounds(2)
    assert (scene.control.bounds["decode"], scene.control.targets["decode"]) == ((1, 20), 7)
    assert scene.bounds() == [(1, 20), (1, 20)]
    assert "decode" in scene.control.automatic


def test_a_deleted_pool_keeps_its_size_where_the_config_has_it_set_by_hand(scene: Scene) -> None:
    scene.ray(**{"pools.decode.autoscale.enabled": False})
    scene.pool()
    scene.rounds()
    scene.control.targets["decode"] = 4
    scene.api.delete(scene.path)
    scene.rounds()
    assert "decode" not in scene.control.automatic and scene.control.targets["decode"] == 4


def test_a_deleted_pool_of_a_size_that_the_config_does_not_allow_stays_as_it_is(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.ray(**{"pools.decode.autoscale.enabled": False, "pools.decode.max_replicas": 5})
    scene.pool(maxReplicas=9)
    scene.rounds()
    scene.scale(7)
    scene.rounds()
    scene.api.delete(scene.path)
    scene.rounds(3)
    assert (scene.control.bounds["decode"], scene.control.targets["decode"]) == ((1, 9), 7)
    assert caplog.text.count("is sized to 7") == 1, "it is said once"


def test_a_deleted_pool_is_let_go_when_the_controller_is_back(scene: Scene) -> None:
    scene.ray()
    scene.pool(maxReplicas=9)
    scene.rounds()
    scene.api.delete(scene.path)
    status = scene.control.status

    def away() -> pb.ClusterStatus:
        raise Unreachable("nothing answers")

    scene.control.status = away  # type: ignore[method-assign]
    with pytest.raises(Unreachable):
        scene.rounds()
    scene.control.status = status  # type: ignore[method-assign]
    scene.rounds()
    assert scene.control.bounds["decode"] == (1, 64)


def test_a_pool_that_was_deleted_while_another_operator_worked_is_no_affair_of_this_one(scene: Scene) -> None:
    """The other one has given it back, and bounds of later hold."""
    scene.ray()
    scene.pool(maxReplicas=9)
    stop = threading.Event()

    def terms() -> Iterator[bool]:
        yield True
        scene.api.delete(scene.path)
        scene.control.bounds["decode"] = (3, 9)
        yield False
        stop.set()
        yield True

    held = terms()
    scene.reconciler.changed = lambda version, seconds=0: False  # type: ignore[method-assign]
    follow(scene.reconciler, lambda: next(held), stop, seconds=0)
    assert scene.control.bounds["decode"] == (3, 9)


def test_bounds_reach_the_rayservice_and_the_live_cluster(scene: Scene) -> None:
    scene.ray()
    scene.pool(minReplicas=2, maxReplicas=9)
    scene.rounds()
    assert scene.bounds() == [(2, 9), (2, 9)]


def test_bounds_of_the_pool_reach_the_controller_and_stay(scene: Scene) -> None:
    scene.pool(minReplicas=2, maxReplicas=9)
    scene.rounds()
    assert scene.control.bounds["decode"] == (2, 9)
    scene.api.merge(scene.path, {"spec": {"maxReplicas": 5}})
    scene.rounds(2)
    assert scene.control.bounds["decode"] == (2, 5)
    assert scene.read()["spec"]["maxReplicas"] == 5


def test_bounds_from_the_command_line_reach_kubernetes(scene: Scene) -> None:
    """`tandem scale decode --min 3 --max 12` tells the controller only."""
    scene.ray()
    scene.pool(minReplicas=2, maxReplicas=9)
    scene.rounds()
    scene.control.scale("decode", least=3, most=12)
    scene.rounds(2)
    spec = scene.read()["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (3, 12)
    assert scene.bounds() == [(3, 12), (3, 12)]
    assert scene.events().count("Bounded") == 2


def test_bounds_of_a_new_controller_are_only_its_settings(scene: Scene) -> None:
    """A second cluster for an upgrade, or a head that was lost: the Pool outlives them."""
    scene.pool(maxReplicas=8)
    scene.rounds(2)
    scene.control.begin_anew(2, automatic=True)
    scene.rounds(2)
    assert scene.read()["spec"]["maxReplicas"] == 8
    assert scene.control.bounds["decode"] == (1, 8)


def test_a_pool_of_an_older_version_takes_the_bounds_that_were_asked_for(scene: Scene) -> None:
    scene.pool()
    scene.rounds()
    gone = {"status": {"minReplicas": None, "maxReplicas": None}}
    scene.api.merge(f"{scene.path}/status", gone)
    scene.control.scale("decode", most=4)
    scene.rounds(2)
    assert scene.read()["spec"]["maxReplicas"] == 4


def test_bounds_are_taken_beside_a_size_that_is_refused(scene: Scene) -> None:
    scene.pool(maxReplicas=9)
    scene.rounds()
    scene.scale(12)
    scene.rounds()
    scene.api.merge(scene.path, {"spec": {"maxReplicas": 6}})
    scene.rounds()
    assert scene.control.bounds["decode"] == (1, 6)
    assert "12 replicas are not within" in scene.condition("Refused")["message"]


def test_bounds_that_leave_the_size_out_are_refused_where_nobody_else_sizes_it(scene: Scene) -> None:
    scene.pool(maxReplicas=9)
    scene.rounds()
    scene.scale(7)
    scene.rounds()
    scene.api.merge(scene.path, {"spec": {"maxReplicas": 5}})
    scene.rounds(2)
    assert "sized to 7" in scene.condition("Refused")["message"]
    scene.scale(5)
    scene.rounds()
    assert (scene.control.targets["decode"], scene.control.bounds["decode"]) == (5, (1, 5))


def test_a_size_comes_with_the_bounds_that_allow_it(scene: Scene) -> None:
    """One edit of both: neither alone would be taken."""
    scene.pool(minReplicas=1, maxReplicas=3)
    scene.rounds()
    scene.api.merge(scene.path, {"spec": {"minReplicas": 6, "maxReplicas": 8, "replicas": 7}})
    scene.rounds()
    assert (scene.control.targets["decode"], scene.control.bounds["decode"]) == (7, (6, 8))


def test_bounds_that_the_controller_refuses_are_a_condition(scene: Scene) -> None:
    scene.ray()
    scene.pool(minReplicas=2, maxReplicas=9)
    scene.rounds()
    scene.api.merge(scene.path, {"spec": {"minReplicas": 12}})
    scene.rounds(2)
    assert "12 instances at least and 9 at most" in scene.condition("Refused")["message"]
    assert scene.bounds() == [(2, 9), (2, 9)]


def test_more_gateways_in_the_rayservice_get_pods_in_the_live_cluster(scene: Scene) -> None:
    """What a rendering with another gateway.replicas changes, and KubeRay does not hand on."""
    scene.ray()
    scene.pool()
    scene.rounds()
    assert scene.bounds("gateway") == [(2, 2), (2, 2)]
    scene.gateways(3)
    scene.settle()
    assert scene.bounds("gateway") == [(3, 3), (3, 3)]
    assert scene.bounds() == [(1, 64), (1, 64)]


def test_fewer_gateways_of_an_upgrade_leave_the_cluster_that_has_the_traffic(scene: Scene) -> None:
    scene.ray()
    scene.pool()
    scene.rounds()
    scene.gateways(1)
    scene.rounds()
    assert scene.bounds("gateway") == [(1, 1), (2, 2)], "KubeRay has not looked at it yet"
    scene.upgrade("tandem-raycluster-fghij")
    scene.settle()
    assert scene.bounds("gateway") == [(1, 1), (2, 2)]
    scene.upgrade("")
    scene.settle()
    assert scene.bounds("gateway") == [(1, 1), (1, 1)], "the mutant that never carries"


def test_bounds_that_agree_are_not_written_again(scene: Scene) -> None:
    scene.ray()
    scene.pool(minReplicas=2, maxReplicas=9)
    scene.rounds()
    path = paths.ray(scene.namespace, "RayCluster", LIVE)
    version = scene.api.get(path)["metadata"]["resourceVersion"]
    scene.rounds()
    assert scene.api.get(path)["metadata"]["resourceVersion"] == version


def test_the_budget_keeps_all_but_one_of_the_fewest(scene: Scene) -> None:
    if not scene.server.budgets:
        pytest.skip("this kube-apiserver does not serve PodDisruptionBudgets")
    scene.budget()
    assert scene.staying() == 0
    scene.pool(minReplicas=3, maxReplicas=9)
    scene.rounds()
    assert scene.staying() == 2
    scene.api.merge(scene.path, {"spec": {"minReplicas": 1}})
    scene.rounds()
    assert scene.staying() == 0


def test_a_budget_of_somebodys_own_is_left_alone(scene: Scene) -> None:
    if not scene.server.budgets:
        pytest.skip("this kube-apiserver does not serve PodDisruptionBudgets")
    scene.budget()
    scene.api.merge(scene.budget_path, {"metadata": {"labels": None}, "spec": {"minAvailable": 5}})
    scene.pool(minReplicas=3, maxReplicas=9)
    scene.rounds()
    assert scene.staying() == 5


def test_a_role_without_budgets_is_named_once_and_works_again_once_it_is_applied(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tandem.operator")
    asked: list[float] = []
    allowed = False

    def budget(*_: object) -> None:
        asked.append(scene.now)
        if not allowed:
            raise InvalidKey("poddisruptionbudgets is forbidden")

    monkeypatch.setattr("k8s.budget.set_budget", budget)
    scene.pool(minReplicas=2, maxReplicas=9)
    for scene.now in range(1200):
        scene.rounds() if scene.now % 5 == 0 else None
    assert asked == [0, 30, 90, 210, 450, 930], "ever rarer, and never given up"
    assert [one.message.count("rbac.yaml") for one in caplog.records if one.levelname == "WARNING"] == [1]
    assert scene.control.bounds["decode"] == (2, 9), "nothing else stops"
    allowed, scene.now = True, 1200 + LONGEST_PAUSE
    scene.rounds(2)
    assert len(asked) == 8 and "budgets are kept in step again" in caplog.text
