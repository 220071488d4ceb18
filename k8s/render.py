"""Renders every manifest from a config: the Kustomize base, its overlays, the CRD and the dashboards.

tandem.yaml ─ Config ─ in_cluster ─ objects/* ─ files by path ─┬─ written into a folder
                                                               └─ printed as one YAML stream
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from shutil import which

from cluster.config import Config
from engine.errors import ConfigError, SetupError
from k8s import record
from k8s.objects import access, dashboards, monitoring, network, overlays, pools
from k8s.objects.names import API_GROUP, PLURAL
from k8s.objects.rayservice import ray_service
from k8s.serve_settings import in_cluster
from k8s.yaml_text import Object, dump, dump_all

CRD_FILE = f"crds/{PLURAL}.{API_GROUP}.yaml"
BUILD_LIMIT = 60.0
"""Seconds that Kustomize may take."""


def base(config: Config) -> dict[str, list[Object]]:
    """The objects of the base by file name. Raises ConfigError for settings that pods cannot have."""
    config = in_cluster(config)
    found = {
        "namespace.yaml": [access.namespace(config)],
        "serviceaccount.yaml": access.service_accounts(config),
        "rbac.yaml": access.rights(config),
        "rayservice.yaml": [ray_service(config)],
        "service.yaml": [network.service(config)],
        "networkpolicy.yaml": network.policies(config),
        "pdb.yaml": access.disruption_budgets(config),
        "pool.yaml": pools.pools(config),
        "operator.yaml": [pools.operator(config)],
        "podmonitor.yaml": monitoring.pod_monitors(config),
        "prometheusrule.yaml": [monitoring.prometheus_rule(config)],
        "grafana-configmap.yaml": [dashboards.config_map(config)],
    }
    # Kustomize takes no file without an object.
    return {name: each for name, each in found.items() if each}


def objects(config: Config) -> list[Object]:
    """Everything that the base applies, the CRD first."""
    return [pools.definition(), *(each for found in base(config).values() for each in found)]


def files(config: Config) -> dict[str, str]:
    """The whole tree: the text of every file by its path. Raises ConfigError."""
    found = base(config)
    tree = {f"base/{name}": dump_all(documents) for name, documents in found.items()}
    tree["base/kustomization.yaml"] = dump(
        {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": list(found),
        }
    )
    for overlay, inner in overlays.overlays(in_cluster(config)).items():
        tree |= {f"overlays/{overlay}/{name}": text for name, text in inner.items()}
    tree[CRD_FILE] = dump(pools.definition())
    tree |= {f"grafana/{name}": dashboards.text(each) for name, each in dashboards.dashboards().items()}
    tree |= {f"grafana/provisioning/{name}": dump(each) for name, each in dashboards.provisioning().items()}
    return tree


def write(config: Config, folder: Path) -> list[Path]:
    """Write the tree into a folder, replacing files of the same names; gives their paths.

    What an earlier rendering wrote there and this one does not is removed. Raises SetupError, and writes
    nothing, where that was changed since: see k8s/record.py.
    """
    tree, written = files(config), []
    record.remove(record.stale(folder, tree, overlays.overlays(in_cluster(Config()))), folder)
    for name, text in {record.RECORD: record.text(tree), **tree}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def check_overlay(config: Config, overlay: str) -> None:
    """Raises ConfigError where the config has no such overlay."""
    if overlay not in overlays.overlays(in_cluster(config)):
        raise ConfigError(
            f"model.activations: int8 is for CPUs: there is no overlay {overlay}", param="model.activations"
        )


def built(config: Config, overlay: str) -> str:
    """What `kubectl apply -k` would send for an overlay, as YAML.

    Raises SetupError without Kustomize, and what `check_overlay` raises.
    """
    check_overlay(config, overlay)
    with tempfile.TemporaryDirectory(prefix="tandem-") as folder:
        write(config, Path(folder))
        return kustomize(Path(folder) / "overlays" / overlay)


def kustomize(folder: Path) -> str:
    """Build a folder with the Kustomize of the PATH, kubectl's or its own. Raises SetupError."""
    for command in (["kubectl", "kustomize"], ["kustomize", "build"]):
        if which(command[0]) is not None:
            done = subprocess.run(
                [*command, str(folder)], capture_output=True, text=True, timeout=BUILD_LIMIT, check=False
            )
            if done.returncode:
                raise SetupError(f"{' '.join(command)} {folder}: {done.stderr.strip()}")
            return done.stdout
    raise SetupError("neither kubectl nor kustomize is on the PATH: install one of them")
