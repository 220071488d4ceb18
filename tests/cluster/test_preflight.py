"""What is checked before a start: each refusal has the numbers and the remedy in it."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from cluster import preflight
from cluster.cli.failures import Exit
from cluster.config import Config, DecodePool, EngineConfig, ModelConfig, PoolsConfig, PrefillPool
from cluster.installation import faults
from engine.errors import SetupError
from tests.cluster.cli_controller import run

GIBI = 2**30


def test_memory_is_counted_for_every_instance_and_once_for_the_weights() -> None:
    config = Config(
        engine=EngineConfig(kv_memory=GIBI, device="cpu"), pools=PoolsConfig(decode=DecodePool(replicas=3))
    )
    needed = 4 * (GIBI + preflight.INSTANCE_OVERHEAD) + 2 * GIBI + preflight.CLUSTER_OVERHEAD
    preflight.check_memory(config, 2 * GIBI, available=needed)
    with pytest.raises(SetupError, match=r"not enough memory: .*4 instances.*lower engine.kv_memory"):
        preflight.check_memory(config, 2 * GIBI, available=needed - 1)


def with_host_memory(device: str) -> Config:
    """One instance that asks for 6 GiB each of KV cache and of host memory."""
    return Config(
        engine=EngineConfig(kv_memory=6 * GIBI, host_memory=6 * GIBI, device=device),
        pools=PoolsConfig(prefill=PrefillPool(replicas=0, min_replicas=0), decode=DecodePool(replicas=1)),
    )


@pytest.mark.parametrize(("device", "kv_memory"), [("cpu", 6 * GIBI), ("cuda", 0)])
def test_host_memory_for_swapped_kv_is_counted_too(device: str, kv_memory: int) -> None:
    config = with_host_memory(device)
    needed = kv_memory + 6 * GIBI + preflight.INSTANCE_OVERHEAD + preflight.CLUSTER_OVERHEAD
    preflight.check_memory(config, 0, available=needed)
    remedy = r"6Gi for swapped KV.*lower engine\.kv_memory, engine\.host_memory or the replicas"
    with pytest.raises(SetupError, match=remedy):
        preflight.check_memory(config, 0, available=needed - 1)


def test_a_cache_and_host_memory_that_fit_one_by_one_alone_are_refused() -> None:
    with pytest.raises(SetupError, match="not enough memory"):
        preflight.check_memory(with_host_memory("cpu"), 0, available=8 * GIBI)


def test_kv_on_a_gpu_takes_no_memory_of_the_host() -> None:
    config = Config(engine=EngineConfig(kv_memory=1000 * GIBI, device="cuda"))
    preflight.check_memory(config, 0, available=4 * GIBI)


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("model.dtype=float16", "set it to auto, float32 or bfloat16"),
        ("engine.kv_dtype=float8_e5m2", "leave it auto"),
    ],
)
def test_numbers_of_gpus_are_refused_before_ray_starts_where_there_is_none(
    setting: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "DEVICES", tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    name, _, number = setting.partition("=")
    result = run("up", "--set", setting)
    assert result.exit_code == Exit.USAGE
    assert result.stderr == f"error: {name}: {number} needs a GPU, and this machine has no GPU; {remedy}\n"
    result = run("up", "--set", setting, "--set", "engine.device=cpu")
    assert f"{name}: {number} needs a GPU, and engine.device is cpu; {remedy}" in result.stderr
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("device", ["nvidiactl", "nvidia0", "nvhost-ctrl", "dxg", "kfd"])
def test_numbers_of_gpus_are_left_to_a_machine_that_may_have_one(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "DEVICES", tmp_path)
    config = Config(model=ModelConfig(dtype="float16"), engine=EngineConfig(kv_dtype="float8_e5m2"))
    with pytest.raises(SetupError):
        preflight.check_numbers(config)
    (tmp_path / device).touch()
    preflight.check_numbers(config)


def test_activations_of_8_bits_are_for_the_compiled_kernels_of_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "DEVICES", tmp_path)
    config = Config(model=ModelConfig(activations="int8"))
    monkeypatch.setattr(preflight, "kernels_obstacle", lambda: None)
    preflight.check_numbers(config)
    monkeypatch.setattr(preflight, "kernels_obstacle", lambda: "not built")
    with pytest.raises(SetupError, match="compiled CPU kernels, which are not built; leave it auto"):
        preflight.check_numbers(config)
    (tmp_path / "nvidia0").touch()
    with pytest.raises(SetupError, match=r"is for CPUs: .*engine\.device to cpu"):
        preflight.check_numbers(config)


def test_a_full_disk_is_named_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10 * GIBI, 10 * GIBI, 0))
    with pytest.raises(SetupError, match=r"is full: 1\.0 GiB needed, 0 MiB free; set cache\.directory"):
        preflight.check_disk(tmp_path, GIBI)


def test_a_cache_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        SetupError, match=r"file/cache cannot be written to \(Not a directory\); set cache\.dir"
    ):
        preflight.check_disk(tmp_path / "file/cache", 0)


def test_port_0_is_always_free() -> None:
    preflight.check_port("127.0.0.1", 0, "gateway.port")


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(
        SetupError, match=r"192\.0\.2\.1:8000 cannot be listened on: .*; set another gateway\.host \(--host\)"
    ):
        preflight.check_port("192.0.2.1", 8000, "gateway.port (--port)")
    with pytest.raises(SetupError, match=r"set another gateway\.host"):
        preflight.check_port("192.0.2.1", 0, "gateway.port")


def test_our_own_installation_has_no_fault() -> None:
    assert faults() == []


def test_a_package_that_was_overwritten_by_another_distribution_is_a_fault(tmp_path: Path) -> None:
    assert "missing" in faults(("no_such_package_of_ours",), tmp_path)[0]


def test_a_package_of_another_place_is_a_fault(tmp_path: Path) -> None:
    (fault,) = faults(("engine",), tmp_path)
    assert fault.startswith("the name engine leads to ")
    assert f"not to tandem's {tmp_path}/engine" in fault
