"""What the processor can do, read without any package."""

from __future__ import annotations

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
