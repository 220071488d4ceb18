"""The settings that only the manifests for Kubernetes are made of."""

from __future__ import annotations

from pydantic import Field

from cluster.config_section import Section
from cluster.units import Quantity

RAY_VERSION = "2.60.0"
LABEL = r"[a-z]([-a-z0-9]*[a-z0-9])?"


class HeadPod(Section):
    """The pod that runs Ray's head and tandem's controller."""

    cpus: float = Field(2.0, gt=0, description="CPUs of the pod, requested and at most.")
    memory: Quantity = Field(4 * 2**30, ge=2**28, description="Memory of the pod, requested and at most.")


class GatewayPod(Section):
    """The pods that run a gateway each."""

    cpus: float = Field(2.0, gt=0, description="CPUs of each pod, requested and at most.")
    memory: Quantity = Field(2 * 2**30, ge=2**28, description="Memory of each pod, requested and at most.")


class PoolPod(Section):
    """The pods that run an instance each."""

    cpus: float = Field(4.0, gt=0, description="CPUs of each pod, requested and at most.")
    memory: Quantity = Field(8 * 2**30, ge=2**28, description="Memory of each pod, requested and at most.")
    gpus: int = Field(
        0, ge=0, description="GPUs of each pod. The overlay `gpu` gives one to pods that have none here."
    )


class PodsConfig(Section):
    """How large the pods are."""

    head: HeadPod = HeadPod()
    gateway: GatewayPod = GatewayPod()
    prefill: PoolPod = PoolPod()
    decode: PoolPod = PoolPod()


class KubernetesConfig(Section):
    """What `tandem k8s render` writes into the manifests."""

    name: str = Field("tandem", pattern=f"^{LABEL}$", max_length=47, description="The RayService's name.")
    namespace: str = Field(
        "tandem", pattern=f"^{LABEL}$", max_length=63, description="The namespace of everything."
    )
    image: str = Field(
        f"tandem-serving:0.1.0-ray{RAY_VERSION}",
        pattern=r"^[^\s:@]+(:[0-9]+/[^\s:@]+)?[:@][^\s]+$",
        description="The image of all pods, with a tag or digest; see the Dockerfile.",
    )
    model_claim: str | None = Field(
        None,
        description="A PersistentVolumeClaim with models, mounted at /models in every pod. Null mounts none.",
    )
    kuberay_namespace: str = Field(
        "kuberay-system", description="Where the KubeRay operator runs; it is let in by the network policy."
    )
    monitoring_namespace: str = Field(
        "monitoring", description="Where Prometheus runs; it is let in by the network policy."
    )
    redis_address: str = Field(
        "redis:6379", description="The Redis that keeps Ray's state in the overlay `ha-redis`."
    )
    pods: PodsConfig = PodsConfig()
