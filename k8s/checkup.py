"""What `tandem doctor` says of Kubernetes: the tools and files that the verbs of k8s need."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from shutil import which

from cluster.cli.checks import OK, WARN, Finding, Surroundings

SCHEMAS = "TANDEM_KUBERAY_SCHEMAS"


def check(around: Surroundings) -> Iterator[Finding]:
    """Nothing here is needed to serve on one machine, so nothing fails."""
    missing = [name for name in ("kubernetes", "jsonschema") if importlib.util.find_spec(name) is None]
    if missing:
        text = f"{', '.join(missing)} not installed: `tandem k8s lint` and the operator need it"
        yield Finding("kubernetes", WARN, text, "pip install 'tandem-serving[k8s]'")
    if which("kubectl") is None:
        yield Finding("kubernetes", WARN, "no kubectl on the PATH", "install it for `tandem k8s apply`")
    folder = around.environment.get(SCHEMAS)
    if folder is None or not Path(folder).is_dir():
        text = "no KubeRay schemas: `tandem k8s lint` does not check the fields of RayService and RayCluster"
        yield Finding("kubernetes", WARN, text, f"name the folder in {SCHEMAS}: docs/kubernetes.md")
    elif not missing:
        yield Finding("kubernetes", OK, f"schemas in {folder}")
