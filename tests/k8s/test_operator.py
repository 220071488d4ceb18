"""The operator, against the fake API server and against a real one."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path
from shutil import which

import pytest

from cluster import control_pb2 as pb
from cluster.config import Config
from engine.errors import TandemError, Unreachable
from k8s.objects.names import ALIVE
from k8s.objects.pools import SILENT_MINUTES
from k8s.operator import follow
from k8s.render import objects
from tests.k8s.scene import LIVE, WAIT, Scene, eventually
from tests.k8s.servers import Server


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


def test_every_change_of_the_size_is_an_event_with_its_reason(scene: Scene) -> None:
    scene.pool()
    scene.rounds()
    assert scene.told("Scaled") == [], "a new Pool only learns the size"
    scene.control.targets["decode"] = 7
    scene.control.reasons["decode"] = "4.2 blocks per request, 10 are wanted"
    scene.rounds(2)
    assert scene.told("Scaled") == ["from 2 to 7, 4.2 blocks per request, 10 are wanted"]
    before = set(scene.told("Scaled"))
    scene.scale(5)
    scene.rounds(2)
    assert set(scene.told("Scaled")) - before == {"from 7 to 5, as the Pool says"}


def test_an_unknown_role_is_refused_by_the_server(scene: Scene) -> None:
    with pytest.raises(TandemError):
        scene.pool(role="encode")


def test_the_selector_names_the_live_cluster(scene: Scene) -> None:
    scene.ray()
    scene.pool()
    scene.rounds()
    assert scene.read()["status"]["selector"] == f"ray.io/group=decode,ray.io/cluster={LIVE}"


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


def asked_whether_it_goes_on(alive: Path) -> bool:
    """What Kubernetes asks of the operator's pod, with the file elsewhere."""
    (deployment,) = (each for each in objects(Config()) if each["kind"] == "Deployment")
    probe = deployment["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["exec"]["command"]
    command = [word.replace(ALIVE, str(alive)) for word in probe]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_an_operator_that_goes_on_is_told_from_one_that_hangs(fake_server: Server, tmp_path: Path) -> None:
    scene, stop, alive = Scene(fake_server), threading.Event(), tmp_path / "alive"
    assert not asked_whether_it_goes_on(alive), "not begun"

    def wait() -> bool:
        """Another one works."""
        stop.set()
        return False

    follow(scene.reconciler, wait, stop, seconds=1, alive=alive)
    assert asked_whether_it_goes_on(alive)
    minutes_ago = time.time() - 60 * (SILENT_MINUTES + 1)
    os.utime(alive, (minutes_ago, minutes_ago))
    assert not asked_whether_it_goes_on(alive)
