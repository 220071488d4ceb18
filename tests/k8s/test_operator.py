"""The operator, against the fake API server and against a real one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from shutil import which

import pytest

from cluster import control_pb2 as pb
from engine.errors import InvalidKey, TandemError, Unreachable
from k8s import paths
from k8s.operator import follow
from tests.k8s.scene import LIVE, Scene
from tests.k8s.servers import Server

WAIT = 20.0


@pytest.fixture
def scene(server: Server) -> Scene:
    return Scene(server)


def test_a_new_pool_takes_the_size_that_is_there(scene: Scene) -> None:
    scene.pool()
    scene.rounds()
    assert (scene.read()["spec"]["replicas"], scene.control.calls) == (2, [])


def test_a_new_pool_without_autoscaling_sets_the_size(scene: Scene) -> None:
    scene.pool(replicas=4, autoscale=False)
    scene.rounds()
    assert scene.control.calls == [("decode", 4)]


def test_scaling_the_pool_scales_the_controller(scene: Scene) -> None:
    scene.pool()
    scene.rounds()
    scene.scale(5)
    scene.rounds()
    assert scene.control.targets["decode"] == 5


def test_scaling_by_hand_ends_autoscaling_and_an_event_says_so(scene: Scene) -> None:
    scene.pool()
    scene.rounds()
    scene.scale(5)
    scene.rounds()
    assert scene.read()["spec"]["autoscale"] is False
    assert "AutoscalingOff" in scene.events()


def test_what_the_controller_decides_is_mirrored(scene: Scene) -> None:
    scene.pool()
    scene.rounds()
    scene.control.targets["decode"] = 7
    scene.rounds(2)
    assert (scene.sizes(), scene.control.calls) == ((7, True), [])


def test_rounds_without_a_change_write_nothing(scene: Scene) -> None:
    scene.pool()
    scene.rounds(2)
    version = scene.read()["metadata"]["resourceVersion"]
    scene.rounds(2)
    assert scene.read()["metadata"]["resourceVersion"] == version


def test_an_old_value_that_is_applied_again_is_a_wish(scene: Scene) -> None:
    scene.pool()
    scene.rounds()
    scene.control.targets["decode"] = 4
    scene.rounds()
    scene.scale(2)
    scene.rounds()
    assert scene.control.targets["decode"] == 2


def test_a_wish_outside_the_bounds_is_refused_and_not_clamped(scene: Scene) -> None:
    scene.pool(maxReplicas=3)
    scene.rounds()
    scene.scale(9)
    scene.rounds(2)
    assert scene.control.calls == []
    assert scene.condition("Refused")["status"] == "True"
    assert "9 replicas are not within" in scene.condition("Refused")["message"]


def test_a_refusal_is_told_once(scene: Scene) -> None:
    scene.pool(maxReplicas=3)
    scene.rounds()
    scene.scale(9)
    scene.rounds(3)
    assert scene.events().count("Refused") == 1


def test_a_refusal_ends_with_a_wish_that_is_allowed(scene: Scene) -> None:
    scene.pool(maxReplicas=3)
    scene.rounds()
    scene.scale(9)
    scene.rounds()
    scene.scale(3)
    scene.rounds()
    assert scene.condition("Refused")["status"] == "False"
    assert scene.control.targets["decode"] == 3


def test_what_the_controller_refuses_is_a_condition(scene: Scene) -> None:
    scene.pool()
    scene.rounds()
    scene.control.refusal = "a drain is under way"
    scene.scale(1)
    scene.rounds()
    assert scene.condition("Refused")["message"] == "a drain is under way"


def test_the_status_counts_instances(scene: Scene) -> None:
    scene.pool()
    scene.control.targets["decode"], scene.control.starting = 4, 1
    scene.rounds()
    status = scene.read()["status"]
    assert (status["replicas"], status["readyReplicas"]) == (4, 3)


def test_a_condition_keeps_the_time_of_its_last_change(scene: Scene) -> None:
    scene.pool()
    scene.rounds()
    before = scene.condition("Ready")
    scene.control.draining = 1
    scene.rounds()
    assert (before["status"], scene.condition("Draining")["status"]) == ("True", "True")
    assert scene.condition("Ready")["lastTransitionTime"] == before["lastTransitionTime"]


def test_a_pool_of_another_cluster_is_left_alone(scene: Scene) -> None:
    scene.pool(clusterRef={"name": "other"})
    scene.rounds()
    assert not scene.read().get("status")


def test_a_deleted_pool_leaves_the_instances(scene: Scene) -> None:
    scene.pool()
    scene.rounds()
    scene.api.delete(scene.path)
    scene.rounds()
    assert scene.control.calls == []


def test_an_unknown_role_is_refused_by_the_server(scene: Scene) -> None:
    with pytest.raises(TandemError):
        scene.pool(role="encode")


def test_the_selector_names_the_live_cluster(scene: Scene) -> None:
    scene.ray()
    scene.pool()
    scene.rounds()
    assert scene.read()["status"]["selector"] == f"ray.io/group=decode,ray.io/cluster={LIVE}"


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


def test_a_role_without_budgets_is_named_once_and_nothing_else_stops(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbidden(*_: object) -> None:
        raise InvalidKey("poddisruptionbudgets is forbidden")

    monkeypatch.setattr("k8s.operator.set_budget", forbidden)
    scene.pool(minReplicas=2, maxReplicas=9)
    scene.rounds(3)
    assert [one.message.count("rbac.yaml") for one in caplog.records if one.levelname == "WARNING"] == [1]
    assert scene.control.bounds["decode"] == (2, 9)


def test_a_round_survives_a_pool_that_changes_meanwhile(scene: Scene) -> None:
    scene.pool()
    scene.rounds()
    scene.scale(5)
    status = scene.control.status

    def meddling() -> pb.ClusterStatus:
        scene.control.status = status  # type: ignore[method-assign]
        scene.api.merge(scene.path, {"metadata": {"labels": {"touched": "yes"}}})
        return status()

    scene.control.status = meddling  # type: ignore[method-assign]
    scene.rounds()
    assert scene.control.calls == []
    scene.rounds()
    assert scene.control.calls == [("decode", 5)]


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it comes true within a bound; what is waited for happens in another process or thread."""
    end = time.monotonic() + WAIT
    pause = threading.Event()
    while not holds():
        if time.monotonic() > end:
            return False
        pause.wait(0.05)
    return True


def working(scene: Scene) -> tuple[threading.Event, threading.Thread]:
    stop = threading.Event()
    thread = threading.Thread(
        target=follow, args=(scene.reconciler, lambda: True, stop), kwargs={"seconds": 1}
    )
    thread.start()
    return stop, thread


@pytest.mark.skipif(which("kubectl") is None, reason="needs kubectl on the PATH")
def test_kubectl_scale_reaches_the_controller(scene: Scene, tmp_path: Path) -> None:
    scene.pool()
    scene.rounds()
    stop, thread = working(scene)
    try:
        done = scene.server.kubectl(
            *("scale", "tpool/decode", "--replicas=5", "-n", scene.namespace), home=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert scene.control.scaled.wait(WAIT)
        assert eventually(lambda: scene.read()["status"].get("readyReplicas") == 5)
    finally:
        stop.set()
        thread.join()
    assert scene.control.targets["decode"] == 5


def test_an_operator_goes_on_when_the_controller_comes_back(scene: Scene) -> None:
    scene.pool()
    scene.rounds()
    status, failed = scene.control.status, threading.Event()

    def away() -> pb.ClusterStatus:
        failed.set()
        scene.control.status = status  # type: ignore[method-assign]
        raise Unreachable("nothing answers")

    scene.control.status = away  # type: ignore[method-assign]
    scene.scale(3)
    stop, thread = working(scene)
    try:
        assert failed.wait(WAIT) and scene.control.scaled.wait(WAIT)
    finally:
        stop.set()
        thread.join()
