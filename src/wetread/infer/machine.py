"""What a machine is, as far as it matters for the speed of models."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_CPUINFO = Path("/proc/cpuinfo")
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_STATUS = Path("/proc/self/status")

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm")
"""Instructions that inference runtimes use."""

Word = Annotated[str, Field(max_length=200)]
Words = Annotated[tuple[Word, ...], Field(max_length=100)]


class Machine(BaseModel):
    """A machine, and what it was doing besides."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Word = Field(description="What to call it in comparisons.")
    cpu: Word
    cores: int = Field(ge=1, description="Logical processors.")
    usable: float = Field(gt=0, description="Processors that this process may use, by affinity and container.")
    flags: Words = Field(description="Instructions that matter, of `FLAGS`.")
    memory_bytes: int = Field(ge=0, description="0 when the system does not say.")
    gpus: Words = Field(description="Graphics processors that the NVIDIA driver names.")
    providers: Words = Field(description="What ONNX Runtime can run on; `CUDAExecutionProvider` is a GPU.")
    system: Word
    python: Word
    onnxruntime: Word
    openvino: Word = Field(description="Empty where it is not installed.")
    load: float = Field(ge=0, description="Mean number of running processes in the minute before.")


def look(name: str = "") -> Machine:
    """Return the facts of this machine; `name` is by default its host name."""
    from importlib import metadata, util

    import onnxruntime as ort

    info = _CPUINFO.read_text(encoding="utf-8", errors="replace") if _CPUINFO.is_file() else ""
    words = set(_first(info, "flags|Features").split())
    return Machine(
        name=(name or platform.node() or "machine")[:200],
        cpu=(_first(info, "model name") or platform.processor() or platform.machine())[:200],
        cores=os.cpu_count() or 1,
        usable=usable(),
        flags=tuple(flag for flag in FLAGS if flag in words),
        memory_bytes=_memory(),
        gpus=tuple(_gpus()),
        providers=tuple(ort.get_available_providers()),
        system=platform.platform()[:200],
        python=platform.python_version(),
        onnxruntime=ort.__version__,
        openvino=metadata.version("openvino") if util.find_spec("openvino") else "",
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
    )


def usable() -> float:
    """Return how many processors this process may use: by affinity, and by the limit of its container."""
    count = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        quota, period = _CPU_MAX.read_text(encoding="ascii").split()
        return min(count, int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no container, or one without a limit: "max"
        return count


def memory() -> tuple[int, int]:
    """Return the memory of this process, now and at most, in bytes.

    From the kernel's account of this program alone: `ru_maxrss` also counts the process that started it.
    """
    if _STATUS.is_file():
        found = dict(re.findall(r"^(VmRSS|VmHWM):\s*(\d+) kB$", _STATUS.read_text(encoding="ascii"), re.M))
        if len(found) == 2:
            return int(found["VmRSS"]) * 1024, int(found["VmHWM"]) * 1024
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return most, most


def _first(info: str, key: str) -> str:
    found = re.search(rf"^(?:{key})\s*:(.*)$", info, re.M)
    return found[1].strip() if found else ""


def _memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0


def _gpus() -> Iterable[str]:
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip()[:200] for line in said.splitlines() if line.strip()]
