"""The GPUs that torch can use here, and its NCCL."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Accelerators:
    """`torch`, `cuda` and `nccl` are versions, '' for what there is not; `gpus` are the devices' names."""

    torch: str
    cuda: str
    gpus: tuple[str, ...]
    nccl: str


def accelerators() -> Accelerators:
    """What there is now; the first call wakes the driver."""
    usable = torch.cuda.is_available()
    count = torch.cuda.device_count() if usable else 0
    gpus = tuple(torch.cuda.get_device_name(number) for number in range(count))
    nccl = ""
    if usable and torch.distributed.is_nccl_available():
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return Accelerators(str(torch.__version__), str(torch.version.cuda or ""), gpus, nccl)
