"""An instance has the transports that its config asks for, or says which it cannot have and why."""

from __future__ import annotations

import pytest

from cluster.config import TransferConfig
from cluster.transports import listening, transports
from engine.errors import SetupError
from migration.nccl_device import obstacle


def test_shared_memory_and_tcp_are_always_there() -> None:
    assert set(transports(TransferConfig(), "cpu", None)) == {"shm", "tcp"}


def test_nccl_is_refused_where_the_kv_cache_is_on_the_cpu() -> None:
    with pytest.raises(SetupError, match=r"transfer\.transport nccl: the KV cache is on the cpu") as refused:
        transports(TransferConfig(transport="nccl"), "cpu", None)
    assert refused.value.param == "transfer.transport"


def test_nccl_is_refused_without_gpu_or_cupy() -> None:
    if obstacle() is None:
        pytest.skip("this machine has a GPU, cupy and NCCL")
    with pytest.raises(SetupError, match=r"transfer\.transport nccl: (cupy|there is no GPU)"):
        transports(TransferConfig(transport="nccl"), "cuda:0", None)


@pytest.mark.parametrize(
    ("config", "listens"),
    [
        ({}, {"shm": "", "tcp": "127.0.0.1:0"}),
        ({"transport": "tcp", "host": "::1"}, {"tcp": "[::1]:0"}),
        ({"transport": "shm"}, {"shm": ""}),
        ({"transport": "nccl"}, {"shm": "", "tcp": "127.0.0.1:0", "nccl": "127.0.0.1:0"}),
    ],
    ids=str,
)
def test_each_transport_listens_and_fallbacks_stay_open(config: dict[str, str], listens: object) -> None:
    assert listening(TransferConfig.model_validate(config)) == listens
