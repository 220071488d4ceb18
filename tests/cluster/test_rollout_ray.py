"""Real instances are replaced, and settings changed, while clients stream, who notice nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cluster.cli.logs import Source, log_of, processes
from tests.cluster.conftest import Cluster
from tests.cluster.streams import Client, reference

TOKENS = 400
AT_ONCE = 3


@contextmanager
def nothing_noticed(cluster: Cluster, name: str) -> Iterator[None]:
    """Streams that are under way before and after what is done inside say what they always say."""
    whole = reference(cluster, TOKENS)
    clients = [Client(cluster, f"{name}-{number}", TOKENS) for number in range(AT_ONCE)]
    try:
        yield
        clients += [Client(cluster, f"{name}-after-{number}", TOKENS) for number in range(AT_ONCE)]
        assert [client.text() for client in clients] == [whole] * 2 * AT_ONCE
        assert all(client.recoveries == 0 for client in clients)
    finally:
        for client in clients:
            client.close()


def test_every_instance_is_replaced_by_a_new_process_and_no_client_notices(cluster: Cluster) -> None:
    before = {one.pid for one in cluster.status().instances}
    after = cluster.last_event()
    with nothing_noticed(cluster, "rolled"):
        names = cluster.control.restart("all")
        for name in names:
            with Client(cluster, f"while-{name}", TOKENS) as client:
                cluster.event("replaced", after, name, within=120)
                assert client.text() == reference(cluster, TOKENS)
                assert client.recoveries == 0
    status = cluster.until(lambda status: len(status.instances) == 3)
    assert not before & {one.pid for one in status.instances}
    assert {one.version for one in status.instances} == {status.version}
    kinds = {event.kind for event in cluster.control.events(after=after)}
    assert not {"died", "unreplaced", "no_spare"} & kinds


def test_the_controller_begins_anew_with_other_settings_and_streams_go_on(cluster: Cluster) -> None:
    usual = cluster.config.scheduler.rest
    pids = {one.pid for one in cluster.status().instances}
    with nothing_noticed(cluster, "renewed"):
        (change,) = cluster.control.apply({"scheduler.rest": usual + 1})
        assert (change.effect, change.after) == ("controller", f'"{usual + 1:g}s"')
        assert cluster.control.config()["scheduler"]["rest"] == f"{usual + 1:g}s"
    assert {one.pid for one in cluster.status().instances} == pids
    cluster.control.apply({"scheduler.rest": usual})


def test_serve_s_user_config_sets_a_pool_s_target_without_a_restart(cluster: Cluster) -> None:
    from ray import serve

    pid = cluster.status().controller_pid
    controller = serve.get_deployment_handle("Controller", "tandem")
    controller.reconfigure.remote({"pools": {"decode": {"replicas": 3}}}).result(timeout_s=20)
    status = cluster.until(lambda status: len(cluster.ready("decode")) == 3)
    assert status.controller_pid == pid
    controller.reconfigure.remote({"pools.decode.replicas": 2}).result(timeout_s=20)
    cluster.until(lambda status: len(status.instances) == 3)


def test_every_process_of_the_cluster_has_a_log_that_is_found(cluster: Cluster) -> None:
    found = {name: log_of(pid) for name, pid in processes(cluster.status()).items()}
    assert set(found) >= {"controller"} | {one.name for one in cluster.status().instances}
    assert all(path is not None for path in found.values()), found
    assert found["controller"] is not None
    assert any("ready" in line for line in Source("controller", found["controller"]).lines())
