"""What a device can do: its precision, and its peak for the utilisation (MFU)."""

from __future__ import annotations

import re

import torch

from trainer.errors import UsageError

#: Dense bfloat16 operations a second, in 10**12, from NVIDIA's data sheets (SXM where there are
#: several), by words of what the device calls itself; longer ones first.
_PEAK_BF16_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "L40S": 362.0,
    "A100": 312.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40": 181.0,
    "L4": 121.0,
}


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Return whether to run under bfloat16 autocast.

    Raises
    ------
    UsageError
        If bf16 is asked of a GPU that has none.
    """
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "fp32":
        return False
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UsageError(f"{device_name(device)} has no bfloat16: use --train.precision fp32")
    return True


def use_compile(choice: str, device: torch.device) -> bool:
    """Return whether to compile the model: auto does on a GPU."""
    return choice == "always" or (choice == "auto" and device.type == "cuda")


def device_name(device: torch.device) -> str:
    """Return what a device calls itself, such as "NVIDIA H100 80GB HBM3" or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_flops(device: torch.device, bfloat16: bool, stated_tflops: float | None) -> float | None:
    """Return the operations a second that a device can do at most; None where nobody knows.

    Parameters
    ----------
    device : torch.device
    bfloat16 : bool
        The known peaks are bfloat16's; another precision has none.
    stated_tflops : float, optional
        What the user says it is, in 10**12.
    """
    if stated_tflops is not None:
        return stated_tflops * 1e12
    if not bfloat16 or device.type != "cuda":
        return None
    name = device_name(device)
    for words, tflops in _PEAK_BF16_TFLOPS.items():
        if re.search(rf"\b{words}\b", name):
            return tflops * 1e12
    return None
