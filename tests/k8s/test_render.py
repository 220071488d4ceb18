"""What `tandem k8s render` makes of a config, and that the repository holds just that."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import yaml

from cluster.config import Config, load, read
from cluster.config_kubernetes import RAY_VERSION
from cluster.tls import cluster_tls
from engine.errors import ConfigError
from k8s import render
from k8s.objects.dashboards import dashboards, expressions
from k8s.objects.monitoring import alerts
from k8s.render import base, files, objects
from k8s.serve_settings import in_cluster
from k8s.yaml_text import dump_all
from tests.k8s.trees import OVERLAYS, built

ROOT = Path(__file__).resolve().parents[2]
TREES = ("base", "overlays", "crds", "grafana")
needs_kustomize = pytest.mark.skipif(
    which("kubectl") is None and which("kustomize") is None, reason="needs kubectl or kustomize on the PATH"
)


def committed() -> dict[str, str]:
    found = (path for tree in TREES for path in (ROOT / "k8s" / tree).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT / "k8s")): path.read_text(encoding="utf-8") for path in found}


def of(kind: str, config: Config | None = None) -> list[dict[str, Any]]:
    return [each for each in objects(config or Config()) if each["kind"] == kind]


def service(config: Config | None = None) -> dict[str, Any]:
    return of("RayService", config)[0]


def group(name: str, config: Config | None = None) -> dict[str, Any]:
    groups = service(config)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return next(each for each in groups if each["groupName"] == name)


def arguments(config: Config | None = None) -> dict[str, Any]:
    text = yaml.safe_load(service(config)["spec"]["serveConfigV2"])
    found: dict[str, Any] = text["applications"][0]["args"]
    return found


def with_settings(**settings: object) -> Config:
    return load(None, {key.replace("__", "."): value for key, value in settings.items()})


def test_the_repository_holds_what_the_default_config_renders_to() -> None:
    assert files(Config()) == committed()


def test_rendering_again_gives_the_same_bytes() -> None:
    assert files(Config()) == files(Config())


def test_another_config_renders_to_something_else() -> None:
    assert files(with_settings(gateway__replicas=3)) != files(Config())


def test_a_pool_group_has_the_pool_s_size_bounds_and_resource() -> None:
    config = with_settings(
        pools__decode__replicas=3, pools__decode__min_replicas=2, pools__decode__max_replicas=9
    )
    found = group("decode", config)
    assert {key: found[key] for key in ("replicas", "minReplicas", "maxReplicas", "resources")} == {
        "replicas": 3,
        "minReplicas": 2,
        "maxReplicas": 9,
        "resources": {"decode": "1"},
    }


def test_instances_ask_for_what_their_group_offers() -> None:
    assert arguments()["pools.prefill.resources"] == {"prefill": 1}
    assert group("prefill")["resources"] == {"prefill": "1"}


def test_loopback_addresses_are_opened_and_kv_goes_over_tcp() -> None:
    found = arguments()
    assert found["gateway.host"] == found["control.host"] == found["transfer.host"] == "0.0.0.0"
    assert found["transfer.transport"] == "tcp"


def test_the_arguments_give_the_config_back() -> None:
    config = with_settings(
        engine__kv_memory="512Mi", model__name="small", pools__decode__replicas=3, log__format="json"
    )
    assert load(None, arguments(config)) == in_cluster(config)


def test_secrets_are_not_rendered() -> None:
    config = with_settings(control__token="hush-token", gateway__api_keys=["hush-key"])
    assert "hush" not in json.dumps(files(config))


def test_every_container_takes_the_secrets_from_the_secret() -> None:
    for spec in (service()["spec"]["rayClusterConfig"]["headGroupSpec"], group("gateway"), group("decode")):
        variables = spec["template"]["spec"]["containers"][0]["env"]
        secret = {each["name"] for each in variables if "valueFrom" in each}
        assert secret == {
            "TANDEM_CONTROL__TOKEN",
            "TANDEM_GATEWAY__API_KEYS",
            "TANDEM_GATEWAY__METRICS_TOKEN",
            "TANDEM_ADMIN__TOKEN",
        }
        optional = [
            each["name"]
            for each in variables
            if each.get("valueFrom", {}).get("secretKeyRef", {}).get("optional")
        ]
        assert optional == ["TANDEM_ADMIN__TOKEN"], "a console without one draws its own"


def test_gpus_are_requested_as_they_are_limited_and_tolerated() -> None:
    pod = group("decode", with_settings(kubernetes__pods__decode__gpus=2))["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "2"
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_a_model_for_cpus_is_rendered_without_gpus() -> None:
    rounded = with_settings(model__activations="int8")
    found = files(rounded)
    assert not any("overlays/gpu" in path or "nvidia.com/gpu" in text for path, text in found.items())
    with pytest.raises(ConfigError, match=r"int8 is for CPUs: there is no overlay gpu"):
        render.check_overlay(rounded, "gpu")


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("kubernetes__pods__decode__gpus", 1, "kubernetes.pods.decode.gpus is not 0"),
        ("kubernetes__pods__prefill__gpus", 2, "kubernetes.pods.prefill.gpus is not 0"),
        ("pools__prefill__resources", {"GPU": 1}, "pools.prefill.resources ask for a GPU"),
        ("pools__decode__resources", {"decode": 1, "GPU": 0.5}, "pools.decode.resources ask for a GPU"),
        ("engine__device", "cuda", "engine.device is cuda"),
    ],
)
def test_a_model_for_cpus_is_refused_where_its_instances_would_compute_on_a_gpu(
    setting: str, value: object, said: str
) -> None:
    files(with_settings(**{setting: value}))
    with pytest.raises(ConfigError, match=f"int8 is for CPUs, and {re.escape(said)}: change one of them"):
        files(with_settings(model__activations="int8", **{setting: value}))


def test_a_model_claim_is_mounted_in_every_pod_for_reading() -> None:
    config = with_settings(kubernetes__model_claim="weights")
    for name in ("gateway", "prefill", "decode"):
        pod = group(name, config)["template"]["spec"]
        assert {"name": "models", "mountPath": "/models", "readOnly": True} in pod["containers"][0][
            "volumeMounts"
        ]


def test_a_pod_outlives_its_drain_by_15_seconds() -> None:
    config = with_settings(control__drain_timeout="100s")
    assert group("decode", config)["template"]["spec"]["terminationGracePeriodSeconds"] >= 115


def test_the_base_needs_no_alpha_feature_of_kuberay() -> None:
    cluster = service()["spec"]["rayClusterConfig"]
    assert not {"networkPolicy", "tlsOptions", "gcsFaultToleranceOptions"} & set(cluster)


def test_the_operator_has_no_right_beyond_its_namespace() -> None:
    assert {each["kind"] for each in objects(Config())} & {"ClusterRole", "ClusterRoleBinding"} == set()


def test_no_rule_has_a_wildcard() -> None:
    rules = [rule for role in of("Role") for rule in role["rules"]]
    assert not [rule for rule in rules if "*" in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]]


def test_every_pod_runs_as_nobody_special() -> None:
    templates = [spec["template"] for spec in service()["spec"]["rayClusterConfig"]["workerGroupSpecs"]]
    templates.append(of("Deployment")[0]["spec"]["template"])
    for template in templates:
        context = template["spec"]["containers"][0]["securityContext"]
        assert context["runAsNonRoot"] and not context["allowPrivilegeEscalation"]


def test_ray_s_version_is_that_of_the_constraints_and_of_the_dockerfile() -> None:
    assert f"ray=={RAY_VERSION}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert f"rayproject/ray:{RAY_VERSION}-" in (ROOT / "Dockerfile").read_text()


def test_the_image_s_tag_names_the_version_of_tandem() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert Config().kubernetes.image.endswith(f":{version}-ray{RAY_VERSION}")


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_builds_to_its_golden_file(overlay: str, request: pytest.FixtureRequest) -> None:
    golden = Path(__file__).parent / "golden" / f"{overlay}.yaml"
    text = built(overlay)
    if request.config.getoption("--update-golden"):
        golden.write_text(text, encoding="utf-8")
    # As data: versions of Kustomize fold long lines differently.
    assert list(yaml.safe_load_all(text)) == list(yaml.safe_load_all(golden.read_text(encoding="utf-8")))


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_keeps_every_group_with_its_template(overlay: str) -> None:
    found = [each for each in yaml.safe_load_all(built(overlay)) if each["kind"] == "RayService"]
    groups = found[0]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    images = {each["groupName"]: each["template"]["spec"]["containers"][0]["image"] for each in groups}
    assert images == dict.fromkeys(("gateway", "prefill", "decode"), Config().kubernetes.image)


@needs_kustomize
def test_every_pod_shows_the_certificate_that_cert_manager_issues() -> None:
    found = list(yaml.safe_load_all(built("mtls")))
    (certificate,) = [each for each in found if each["kind"] == "Certificate" and "dnsNames" in each["spec"]]
    assert certificate["spec"]["dnsNames"] == [Config().security.cluster_tls.name]
    cluster = next(each for each in found if each["kind"] == "RayService")["spec"]["rayClusterConfig"]
    operator = next(each for each in found if each["kind"] == "Deployment")
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"], operator["spec"]]
    assert len(groups) == 5
    for group in groups:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        (mount,) = [each for each in container["volumeMounts"] if each["name"] == "cluster-tls"]
        (volume,) = [each for each in pod["volumes"] if each["name"] == "cluster-tls"]
        assert volume["secret"]["secretName"] == certificate["spec"]["secretName"]
        env = {each["name"]: each.get("value") for each in container["env"]}
        config = read(None, {}, environment={k: v for k, v in env.items() if v is not None}).config
        assert config is not None
        given = cluster_tls(config.security.cluster_tls)
        assert given is not None and str(given.certificate) == f"{mount['mountPath']}/tls.crt"
        assert container["image"] == Config().kubernetes.image, "what was there before is kept"
        assert len(container["volumeMounts"]) > 1 and len(pod["volumes"]) > 1


def test_the_base_lists_every_file_it_has() -> None:
    listed = yaml.safe_load(files(Config())["base/kustomization.yaml"])["resources"]
    assert listed == list(base(Config()))


def test_texts_of_several_lines_are_blocks() -> None:
    assert "a: |\n  one\n  two\n" in dump_all([{"a": "one\ntwo\n"}])


METRIC = re.compile(r"\b(?:tandem_|vllm:)[a-z0-9_]+")


def names_in(texts: list[str]) -> set[str]:
    return {name for text in texts for name in METRIC.findall(text)}


def test_the_expressions_name_metrics() -> None:
    assert len(names_in([each["expr"] for each in alerts("tandem")])) >= 6
    assert len(names_in(expressions())) >= 15


def test_dashboards_have_stable_ids_and_unique_panels() -> None:
    for dashboard in dashboards().values():
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert dashboard["uid"].startswith("tandem-") and len(set(ids)) == len(ids)
        assert dashboard["schemaVersion"] >= 39


def test_dashboards_have_their_variables() -> None:
    for dashboard in dashboards().values():
        names = {variable["name"] for variable in dashboard["templating"]["list"]}
        assert names == {"datasource", "namespace", "model_name", "pool"}


@needs_kustomize
def test_kustomize_s_own_changes_of_image_and_namespace_reach_every_pod(tmp_path: Path) -> None:
    """An overlay of somebody's own, on top of one of ours."""
    render.write(Config(), tmp_path)
    image, tag = Config().kubernetes.image.split(":")
    own = {
        "resources": ["../overlays/gpu"],
        "namespace": "prod",
        "images": [{"name": image, "newName": "registry.example/tandem", "newTag": f"mine-{tag}"}],
    }
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "kustomization.yaml").write_text(yaml.safe_dump(own))
    found = list(yaml.safe_load_all(render.kustomize(tmp_path / "own")))
    inside = {each["metadata"]["namespace"] for each in found if "namespace" in each["metadata"]}
    images = set(re.findall(r"image: *(\S+)", yaml.safe_dump_all(found)))
    assert (inside, images) == ({"prod"}, {f"registry.example/tandem:mine-{tag}"})
    (deployment,) = (each for each in found if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert "prod" in ran(container), "the operator works where its Pools are"


def ran(container: dict[str, Any]) -> list[str]:
    """The words of its command once the kubelet has filled in the variables, in the namespace `prod`."""
    fields = {"metadata.namespace": "prod"}
    values = {
        each["name"]: fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
        for each in container.get("env", [])
        if "fieldRef" in each.get("valueFrom", {})
    }
    return [re.sub(r"\$\((\w+)\)", lambda name: values[name[1]], word) for word in container["command"]]
