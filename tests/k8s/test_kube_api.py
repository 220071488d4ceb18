"""The client of the API, watches and the Lease, against the fake API server and against a real one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cluster.config import Config
from engine.errors import Conflict, InvalidKey, NotFound, Unreachable
from k8s import paths
from k8s.budget import FIRST_PAUSE
from k8s.kube_api import KubeApi
from k8s.lease import DURATION, Lease
from k8s.objects.access import rights
from k8s.operator import Reconciler
from tests.k8s.scene import CLUSTER, Scene, eventually
from tests.k8s.servers import LIMITED, LIMITED_USER, Server


@pytest.fixture
def scene(server: Server) -> Scene:
    return Scene(server)


def test_a_patch_of_a_version_that_has_passed_conflicts(scene: Scene) -> None:
    version = scene.pool()["metadata"]["resourceVersion"]
    scene.scale(3)
    test = {"op": "test", "path": "/metadata/resourceVersion", "value": version}
    with pytest.raises(Conflict):
        scene.api.patch(scene.path, [test, {"op": "add", "path": "/spec/autoscale", "value": False}])


def test_replacing_a_version_that_has_passed_conflicts(scene: Scene) -> None:
    old = scene.pool()
    scene.scale(3)
    with pytest.raises(Conflict):
        scene.api.replace(scene.path, old)


def test_no_such_object_is_not_found(scene: Scene) -> None:
    with pytest.raises(NotFound):
        scene.read()


def test_a_wrong_token_is_refused(server: Server) -> None:
    with pytest.raises(InvalidKey):
        server.api_as("wrong").get("/api/v1/namespaces/default")


def test_nobody_at_the_address_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(Unreachable):
        Server("http://127.0.0.1:9", "any").api.get("/api/v1/namespaces/default")


def test_a_watch_tells_of_a_change(scene: Scene) -> None:
    scene.pool()
    version = scene.reconciler.round()
    scene.scale(4)
    assert scene.reconciler.changed(version, 10)


def test_a_watch_without_a_change_ends_by_itself(scene: Scene) -> None:
    scene.pool()
    scene.rounds(2)
    assert not scene.reconciler.changed(scene.reconciler.round(), 1)


def test_a_watch_from_a_forgotten_version_ends_for_a_new_list(fake_server: Server) -> None:
    scene = Scene(fake_server)
    scene.pool()
    version = scene.reconciler.round()
    scene.scale(4)
    assert fake_server.store is not None
    fake_server.store.forget()
    assert not scene.reconciler.changed(version, 5)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_of_two_operators_one_holds_the_lease(scene: Scene) -> None:
    clock = Clock()
    first, second = (Lease(scene.api, scene.namespace, "op", name, clock) for name in ("a", "b"))
    assert (first.hold(), second.hold(), first.hold()) == (True, False, True)


def test_a_lease_that_is_not_renewed_goes_over(scene: Scene) -> None:
    clock = Clock()
    first, second = (Lease(scene.api, scene.namespace, "op", name, clock) for name in ("a", "b"))
    assert first.hold() and not second.hold()
    clock.now += DURATION + 1
    assert second.hold() and not first.hold()


def test_a_lease_that_is_renewed_stays(scene: Scene) -> None:
    clock = Clock()
    first, second = (Lease(scene.api, scene.namespace, "op", name, clock) for name in ("a", "b"))
    for _ in range(3):
        assert first.hold() and not second.hold()
        clock.now += DURATION - 1


@pytest.mark.apiserver
class TestRights:
    """What the rendered Role allows, judged by the real authoriser."""

    def limited(self, real_server: Server) -> tuple[Scene, KubeApi]:
        scene = Scene(real_server)
        root = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{scene.namespace}"
        role, binding = rights(Config())
        for kind, body in (("roles", role), ("rolebindings", binding)):
            body["metadata"]["namespace"] = scene.namespace
            if kind == "rolebindings":
                body["subjects"] = [
                    {"kind": "User", "name": LIMITED_USER, "apiGroup": "rbac.authorization.k8s.io"}
                ]
            scene.api.create(f"{root}/{kind}", body)
        return scene, real_server.api_as(LIMITED)

    def test_the_operator_can_do_its_work_with_them(self, real_server: Server) -> None:
        scene, api = self.limited(real_server)
        if real_server.ray:
            scene.ray()
        scene.pool(maxReplicas=9)
        reconciler = Reconciler(api, scene.control, scene.namespace, CLUSTER)
        assert Lease(api, scene.namespace, "op", "a", time.monotonic).hold()
        version = reconciler.round()
        scene.scale(5)
        assert reconciler.changed(version, 10)
        reconciler.round()
        assert scene.control.targets["decode"] == 5 and "Scaled" in scene.events()
        with pytest.raises(NotFound):  # and not InvalidKey
            api.get(paths.budget(scene.namespace, "tandem-decode"))

    def test_a_role_that_lacked_budgets_works_as_soon_as_it_is_applied(
        self, real_server: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The operator goes on: it is not restarted for it."""
        caplog.set_level("INFO", logger="tandem.operator")
        scene, api = self.limited(real_server)
        path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{scene.namespace}/roles/tandem-operator"
        whole = scene.api.get(path)["rules"]
        older = [rule for rule in whole if rule["apiGroups"] != ["policy"]]
        assert len(older) == len(whole) - 1
        scene.api.merge(path, {"rules": older})
        scene.pool()
        reconciler = Reconciler(api, scene.control, scene.namespace, CLUSTER, lambda: scene.now)
        assert eventually(lambda: not self.may_read_budgets(scene, api))
        reconciler.round()
        assert "budgets stay as they are" in caplog.text and scene.read()["status"]["readyReplicas"] == 2
        scene.api.merge(path, {"rules": whole})
        assert eventually(lambda: self.may_read_budgets(scene, api))
        scene.now += FIRST_PAUSE
        reconciler.round()
        assert "budgets are kept in step again" in caplog.text

    def may_read_budgets(self, scene: Scene, api: KubeApi) -> bool:
        """There is none, which only those who may look are told. The authoriser hears of Roles by a watch."""
        try:
            api.get(paths.budget(scene.namespace, "tandem-decode"))
        except NotFound:
            return True
        except InvalidKey:
            return False
        return True

    @pytest.mark.parametrize("path", ["/api/v1/namespaces/{}/secrets", "/api/v1/namespaces/{}/pods"])
    def test_they_show_nothing_else(self, real_server: Server, path: str) -> None:
        scene, api = self.limited(real_server)
        with pytest.raises(InvalidKey):
            api.get(path.format(scene.namespace))

    def test_they_end_at_the_namespace(self, real_server: Server) -> None:
        _, api = self.limited(real_server)
        with pytest.raises(InvalidKey):
            api.get(paths.pools("default"))

    def test_they_delete_nothing(self, real_server: Server) -> None:
        scene, api = self.limited(real_server)
        scene.pool()
        with pytest.raises(InvalidKey):
            api.delete(scene.path)
