"""Settings of tandem.yaml that the manifests around the application have to follow."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from cluster.config import Config, load
from engine.errors import ConfigError
from k8s.checks.kinds import Kinds
from k8s.objects.overlays import overlays
from k8s.render import files, objects
from k8s.serve_settings import in_cluster
from k8s.yaml_text import dump_all
from tests.k8s.mistakes import check

FOLDER = "/etc/tandem/gateway-tls"
CERTIFICATE = {
    "security.gateway_tls.certificate": f"{FOLDER}/gateway.pem",
    "security.gateway_tls.key": f"{FOLDER}/gateway.key",
}


def of(kind: str, **settings: object) -> list[dict[str, Any]]:
    found = objects(load(None, {key.replace("__", "."): value for key, value in settings.items()}))
    return [each for each in found if each["kind"] == kind]


def pods(**settings: object) -> dict[str, dict[str, Any]]:
    """The pods' specs by their group, the head's as head."""
    (service,) = of("RayService", **settings)
    cluster = service["spec"]["rayClusterConfig"]
    groups = {each["groupName"]: each for each in cluster["workerGroupSpecs"]}
    return {
        name: each["template"]["spec"] for name, each in ({"head": cluster["headGroupSpec"]} | groups).items()
    }


def last_command(pod: dict[str, Any]) -> list[str]:
    command: list[str] = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    return command


def policies(**settings: object) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each["spec"] for each in of("NetworkPolicy", **settings)}


# what a pod does before it goes


@pytest.mark.parametrize("pool", ["prefill", "decode"])
def test_a_pool_s_pod_leaves_by_the_head_of_its_own_cluster(tmp_path: Path, pool: str) -> None:
    """Not by the Service in front of the head that has the traffic: that may be a newer cluster's."""
    log = tmp_path / "log"
    for name in ("tandem", "ray"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\n')
        program.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "FQ_RAY_IP": "tandem-abcde-head-svc.tandem.svc",
    }
    subprocess.run(last_command(pods()[pool]), env=environment, timeout=30, check=True)
    assert log.read_text().splitlines() == [
        "tandem k8s leave --address tandem-abcde-head-svc.tandem.svc:8002 --deadline 60s",
        "ray stop",
    ]


def test_the_operator_follows_the_traffic_to_the_head_that_has_it() -> None:
    (deployment,) = of("Deployment")
    command = deployment["spec"]["template"]["spec"]["containers"][0]["command"]
    assert "tandem-head-svc:8002" in command


# how many pods must stay


def test_budgets_keep_all_but_one_of_the_smallest_size_as_a_number() -> None:
    found = of(
        "PodDisruptionBudget",
        gateway__replicas=3,
        pools__prefill__min_replicas=1,
        pools__decode__replicas=4,
        pools__decode__min_replicas=4,
    )
    kept = {each["metadata"]["name"]: each["spec"] for each in found}
    assert {name: spec["minAvailable"] for name, spec in kept.items()} == {
        "tandem-gateway": 2,
        "tandem-prefill": 0,
        "tandem-decode": 3,
    }
    assert not [spec for spec in kept.values() if "maxUnavailable" in spec]
    assert {spec["unhealthyPodEvictionPolicy"] for spec in kept.values()} == {"AlwaysAllow"}


# gateways with a certificate


def test_whoever_asks_a_gateway_with_a_certificate_asks_by_https() -> None:
    gateway = pods(**CERTIFICATE)["gateway"]
    (container,) = gateway["containers"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http", "scheme": "HTTPS"}
    assert "--gateway https://127.0.0.1:8000 " in last_command(gateway)[-1]
    monitors = {each["metadata"]["name"]: each["spec"] for each in of("PodMonitor", **CERTIFICATE)}
    (endpoint,) = monitors["tandem-gateway"]["podMetricsEndpoints"]
    assert (endpoint["scheme"], endpoint["tlsConfig"]) == ("https", {"insecureSkipVerify": True})
    (service,) = of("Service", **CERTIFICATE)
    (port,) = service["spec"]["ports"]
    assert (port["name"], port["port"], port["targetPort"]) == ("https", 443, "http")


def test_whoever_asks_a_gateway_without_a_certificate_asks_by_http() -> None:
    gateway = pods()["gateway"]
    assert gateway["containers"][0]["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}
    assert "--gateway http://127.0.0.1:8000 " in last_command(gateway)[-1]
    monitors = {each["metadata"]["name"]: each["spec"] for each in of("PodMonitor")}
    assert not {"scheme", "tlsConfig"} & set(monitors["tandem-gateway"]["podMetricsEndpoints"][0])
    assert "gateway-tls" not in dump_all(objects(Config()))


def test_every_pod_of_ray_has_the_certificate_where_the_config_says() -> None:
    """Whoever builds the application reads it once, and may be on any of them."""
    found = pods(**CERTIFICATE)
    assert set(found) == {"head", "gateway", "prefill", "decode"}
    for pod in found.values():
        (mount,) = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "gateway-tls"]
        (volume,) = [each for each in pod["volumes"] if each["name"] == "gateway-tls"]
        assert volume["secret"]["secretName"] == "tandem-gateway-tls" and mount["readOnly"]
        placed = {
            each["key"]: str(PurePosixPath(mount["mountPath"]) / each["path"])
            for each in volume["secret"]["items"]
        }
        assert placed == {
            "tls.crt": CERTIFICATE["security.gateway_tls.certificate"],
            "tls.key": CERTIFICATE["security.gateway_tls.key"],
        }


def test_pods_have_the_admin_s_certificate_and_the_keys_of_clients_too() -> None:
    settings = {
        **CERTIFICATE,
        "security.admin_tls.certificate": "/etc/tandem/admin-tls/tls.crt",
        "security.admin_tls.key": "/etc/tandem/admin-tls/tls.key",
        "security.admin_tls.authority": "/etc/tandem/admin-tls/ca.crt",
        "gateway.key_file": "/etc/tandem/gateway-keys/keys",
    }
    for pod in pods(**settings).values():
        (container,) = pod["containers"]
        folders = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        placed = {
            f"{folders[volume['name']]}/{item['path']}": (volume["secret"]["secretName"], item["key"])
            for volume in pod["volumes"]
            if "secret" in volume
            for item in volume["secret"]["items"]
        }
        assert placed == {
            CERTIFICATE["security.gateway_tls.certificate"]: ("tandem-gateway-tls", "tls.crt"),
            CERTIFICATE["security.gateway_tls.key"]: ("tandem-gateway-tls", "tls.key"),
            "/etc/tandem/admin-tls/tls.crt": ("tandem-admin-tls", "tls.crt"),
            "/etc/tandem/admin-tls/tls.key": ("tandem-admin-tls", "tls.key"),
            "/etc/tandem/admin-tls/ca.crt": ("tandem-admin-tls", "ca.crt"),
            "/etc/tandem/gateway-keys/keys": ("tandem-gateway-keys", "keys"),
        }
        (keys,) = [each for each in container["env"] if each["name"] == "TANDEM_GATEWAY__API_KEYS"]
        assert keys["valueFrom"]["secretKeyRef"]["optional"], "the file may have them all"


def test_without_a_file_of_keys_the_secret_has_to_have_them() -> None:
    for pod in pods().values():
        (keys,) = [e for e in pod["containers"][0]["env"] if e["name"] == "TANDEM_GATEWAY__API_KEYS"]
        assert "optional" not in keys["valueFrom"]["secretKeyRef"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("keys", "whole paths there, such as /etc/tandem/gateway-keys/keys"),
        ("/keys", "folders of their own"),
        (f"{FOLDER}/keys", "of security.gateway_tls come from a Secret each"),
        (f"{FOLDER}/k/keys", "of security.gateway_tls come from a Secret each"),
    ],
)
def test_a_file_of_keys_that_pods_cannot_have_is_refused(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"gateway.key_file.*{message}"):
        files(load(None, {**CERTIFICATE, "gateway.key_file": path}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"security.gateway_tls.authority": f"{FOLDER}/ca.pem"}, "authority: neither", id="asks"),
        pytest.param({"security.gateway_tls.key": None}, "both certificate and key", id="half"),
        pytest.param(
            {"security.gateway_tls.key": "/etc/other/gateway.key"}, "folder of their own", id="apart"
        ),
        pytest.param({"security.gateway_tls.key": f"{FOLDER}/gateway.pem"}, "whole paths", id="one file"),
        pytest.param(
            {"security.gateway_tls.certificate": "tls/a.pem", "security.gateway_tls.key": "tls/a.key"},
            "whole paths",
            id="relative",
        ),
        pytest.param(
            {"security.gateway_tls.certificate": "/etc/a.pem", "security.gateway_tls.key": "/etc/a.key"},
            "folder of their own",
            id="over others",
        ),
        pytest.param(
            {
                "security.gateway_tls.certificate": "/etc/tandem/tls/a.pem",
                "security.gateway_tls.key": "/etc/tandem/tls/a.key",
            },
            "folder of their own",
            id="over the cluster's certificate",
        ),
    ],
)
def test_a_certificate_that_pods_cannot_have_is_refused(changed: dict[str, object], message: str) -> None:
    settings = {key: value for key, value in (CERTIFICATE | changed).items() if value is not None}
    with pytest.raises(ConfigError, match=f"security.gateway_tls.*{message}"):
        files(load(None, settings))


# the console, and traces


def test_a_port_of_the_console_that_is_set_can_be_forwarded() -> None:
    assert {"name": "admin", "containerPort": 8001} in pods(admin__port=8001)["head"]["containers"][0][
        "ports"
    ]
    assert "admin" not in {each["name"] for each in pods()["head"]["containers"][0]["ports"]}


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("http://collector.monitoring:4318/v1/traces", 4318),
        ("https://collector.example/v1/traces", 443),
        ("http://collector/v1/traces", 80),
    ],
)
def test_gateways_reach_the_collector_of_traces(url: str, port: int) -> None:
    found = policies(observe__traces=url)["tandem-traces"]
    assert found["podSelector"]["matchLabels"]["ray.io/group"] == "gateway"
    assert found["policyTypes"] == ["Egress"]
    assert found["egress"] == [{"ports": [{"port": port, "protocol": "TCP"}]}]
    assert "tandem-traces" not in policies()


@pytest.mark.parametrize("url", ["collector:4318", "http://collector:port", "ftp://collector"])
def test_an_address_for_traces_that_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=f"observe.traces: {url} is no URL"):
        policies(observe__traces=url)


def test_the_image_can_send_traces() -> None:
    dockerfile = Path(__file__).resolve().parents[2] / "Dockerfile"
    assert "[k8s,tracing]" in dockerfile.read_text(encoding="utf-8")


def test_who_empties_the_redis_of_a_deleted_cluster_reaches_it() -> None:
    text = overlays(in_cluster(Config()))["ha-redis"]["networkpolicy.yaml"]
    selector = yaml.safe_load(text)["spec"]["podSelector"]
    assert selector == {
        "matchLabels": {"tandem.dev/cluster": "tandem"},
        "matchExpressions": [
            {"key": "ray.io/node-type", "operator": "In", "values": ["head", "redis-cleanup"]}
        ],
    }


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(CERTIFICATE, id="gateways with a certificate"),
        pytest.param({"observe.traces": "http://collector:4318/v1/traces"}, id="traces"),
        pytest.param({"gateway.replicas": 1}, id="no budget"),
        pytest.param({"admin.port": 8001}, id="a console"),
    ],
)
def test_what_is_rendered_of_these_settings_has_no_problem(settings: dict[str, object], kinds: Kinds) -> None:
    assert check(dump_all(objects(load(None, settings))), kinds).problems == ()
