"""Machine types of Vertex AI and the GPUs that go with them.

What is listed is what Google documents; a machine that is not may be newer than this program, so it
is sent as it was given, with a warning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from trainer.errors import UsageError
from trainer.near_names import did_you_mean


def _gpus(*counts: int) -> dict[str, int]:
    return {f"{count}g": count for count in counts}


#: {family: (its GPU, {size: GPUs})}; such a machine has no other number of them.
_BUILT_IN: dict[str, tuple[str, Mapping[str, int]]] = {
    "a2-highgpu": ("NVIDIA_TESLA_A100", _gpus(1, 2, 4, 8)),
    "a2-megagpu": ("NVIDIA_TESLA_A100", _gpus(16)),
    "a2-ultragpu": ("NVIDIA_A100_80GB", _gpus(1, 2, 4, 8)),
    "a3-highgpu": ("NVIDIA_H100_80GB", _gpus(1, 2, 4, 8)),
    "a3-edgegpu": ("NVIDIA_H100_80GB", _gpus(8)),
    "a3-megagpu": ("NVIDIA_H100_MEGA_80GB", _gpus(8)),
    "a3-ultragpu": ("NVIDIA_H200_141GB", _gpus(8)),
    "a4-highgpu": ("NVIDIA_B200", _gpus(8)),
    "a4x-highgpu": ("NVIDIA_GB200", _gpus(4)),
    "g2-standard": (
        "NVIDIA_L4",
        {"4": 1, "8": 1, "12": 1, "16": 1, "24": 2, "32": 1, "48": 4, "96": 8},
    ),
    "g4-standard": ("NVIDIA_RTX_PRO_6000", {"48": 1, "96": 2, "192": 4, "384": 8}),
}
#: {GPU that is put into a machine of N1: how many it may be}.
_ATTACHED = {
    "NVIDIA_TESLA_P4": (1, 2, 4),
    "NVIDIA_TESLA_P100": (1, 2, 4),
    "NVIDIA_TESLA_T4": (1, 2, 4),
    "NVIDIA_TESLA_V100": (1, 2, 4, 8),
}
#: Series without GPUs, but for those that N1 may get.
_PLAIN = {"c2", "c2d", "c3", "c3d", "c4", "e2", "m1", "m2", "m3", "n1", "n2", "n2d", "n4"}
_FORM = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)+")


def resolve_accelerator(
    machine: str, accelerator: str | None, count: int | None
) -> tuple[str, int]:
    """Return GPU type and GPUs of a machine; ("", 0) for one without.

    Parameters
    ----------
    machine : str
        Machine type.
    accelerator : str or None
        GPU type as Vertex AI names it, or "none"; None for what the machine has.
    count : int or None
        GPUs; None for what the machine has.

    Raises
    ------
    UsageError
        If it is no machine type, or what was given is not what machines of this type have.
    """
    if not _FORM.fullmatch(machine):
        raise UsageError(f"--machine must be a machine type such as a2-highgpu-1g, not {machine!r}")
    has = _built_in(machine)
    if accelerator == "none":
        if has:
            raise UsageError(
                f"--machine {machine} has {has[1]} x {has[0]}: leave --accelerator out"
            )
        return "", 0
    if has is not None:
        if (accelerator or has[0], count or has[1]) != has:
            raise UsageError(
                f"--machine {machine} has {has[1]} x {has[0]}, not {count or has[1]} x "
                f"{accelerator or has[0]}: leave --accelerator and --accelerator_count out"
            )
        return has
    if accelerator is None:
        if count is not None:
            raise UsageError("--accelerator_count needs --accelerator")
        return "", 0
    _check_attached(machine, accelerator, count or 1)
    return accelerator, count or 1


def machine_notes(machine: str, accelerator: str) -> list[str]:
    """Return what is worth a warning: a machine type that may be misspelt, or newer than this.

    Parameters
    ----------
    machine, accelerator : str
        As `resolve_accelerator` took and returned them.
    """
    known = [f"{name}-{size}" for name, (_, sizes) in _BUILT_IN.items() for size in sizes]
    if machine in known or machine.partition("-")[0] in _PLAIN:
        return []
    hint = did_you_mean(machine, known)
    gpu = "" if accelerator else ", without a GPU: if it has one, give --accelerator"
    return [f"--machine {machine} is not known to this program{hint}; it is sent like this{gpu}"]


def _built_in(machine: str) -> tuple[str, int] | None:
    """Return the GPUs that a machine type comes with, None where none are known."""
    family, _, size = machine.rpartition("-")
    gpu, sizes = _BUILT_IN.get(family, ("", {}))
    count = sizes.get(size)
    if count is None and gpu and re.fullmatch(r"[1-9]\d*g", size):
        # A size that is newer than this program; its name says the number.
        count = int(size[:-1])
    return None if count is None else (gpu, count)


def _check_attached(machine: str, accelerator: str, count: int) -> None:
    """Refuse a GPU that a machine without one of its own cannot get."""
    series = machine.partition("-")[0]
    if series not in _PLAIN:
        return
    homes = [
        f"{name}-{next(iter(sizes))}"
        for name, (gpu, sizes) in _BUILT_IN.items()
        if gpu == accelerator
    ]
    if homes:
        raise UsageError(
            f"--machine {machine} cannot get {accelerator}: give --machine {homes[0]}, which has "
            "it, and leave --accelerator out"
        )
    if accelerator not in _ATTACHED:
        return
    if series != "n1":
        raise UsageError(
            f"--machine {machine} cannot get {accelerator}: only machines of N1 can, such as "
            "n1-standard-8"
        )
    if count not in _ATTACHED[accelerator]:
        counts = ", ".join(map(str, _ATTACHED[accelerator]))
        raise UsageError(f"--accelerator_count of {accelerator} is one of {counts}, not {count}")
