"""What `auto` means for the device and the numbers to compute with."""

from __future__ import annotations

import torch


def resolve(device: str, dtype: str) -> tuple[str, str]:
    """Names for ModelRunner: a GPU where there is one, and there bfloat16; float32 on the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    return device, dtype
