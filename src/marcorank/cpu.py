"""What the processor can do, read without any package."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path

_INTERESTING = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")


@lru_cache(maxsize=1)
def cpu_features() -> frozenset[str]:
    """Return the instruction sets that matter here, named as in Linux's /proc/cpuinfo, and `arm64`.

    Empty where the system does not tell (Windows and macOS on x86); the portable files are taken then.
    """
    if platform.machine().lower() in {"arm64", "aarch64"}:
        return frozenset({"arm64"})
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return frozenset(flags).intersection(_INTERESTING)


def processor_name() -> str:
    """Return the processor's name as the system shows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def usable_cores() -> int:
    """Return how many cores this process may use: containers and job schedulers often grant fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
