"""Compare our own `/v2` with NVIDIA's Triton on the CPU: the same package, asked by the same client in the same way.

Triton is the one in the wheel nvidia-pytriton, which has the Python back end only, and needs an environment of its own:

    python3.11 -m venv pytriton
    pytriton/bin/pip install 'nvidia-pytriton>=0.7' 'numpy==1.26.*' onnxruntime
    python -m benchmarks triton --environment pytriton

It serves the very repository that `wetread export-triton --backend python` writes, and is trusted only after it kept
the package's golden outputs. Both servers have the same number of threads, one instance, and 5 ms to fill a batch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from benchmarks.serve import percentiles, processor_s
from wetread.clinic import access
from wetread.clinic.store import Store
from wetread.infer import runtime, triton
from wetread.infer.remote import Remote
from wetread.model.package import Package


def triton_python(environment: Path) -> dict[str, str]:
    """Return what Triton's embedded Python needs to know of an environment, or end by saying what is missing."""
    asked = (
        "import json, sys, sysconfig, numpy, onnxruntime, pytriton; from pathlib import Path; print(json.dumps({"
        "'packages': str(Path(pytriton.__file__).parents[1]), 'numpy': numpy.__version__, "
        "'libraries': sysconfig.get_config_var('LIBDIR'), 'shared': sysconfig.get_config_var('Py_ENABLE_SHARED'), "
        "'python': '.'.join(map(str, sys.version_info[:2]))}))"
    )
    done = subprocess.run([environment / "bin/python", "-c", asked], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"triton: {done.stderr.strip().splitlines()[-1]}; make the environment as `--help` says")
    found: dict[str, str] = json.loads(done.stdout)
    if not found["numpy"].startswith("1."):
        sys.exit(f"triton: its numpy is {found['numpy']}, the Python back end needs 1.26; see --help")
    if not found["shared"]:
        sys.exit("triton: this Python has no libpython; make the environment with one that was built with it")
    return found


@contextmanager
def started(command: list[str], environment: dict[str, str], cwd: Path, ready: str) -> Iterator[subprocess.Popen[str]]:
    """Run a server until the end, from when it says that it is ready."""
    log = cwd / "server.log" if os.access(cwd, os.W_OK) else Path(os.devnull)
    with (
        log.open("w") as out,
        subprocess.Popen(command, env=environment, cwd=cwd, stdout=out, stderr=out, text=True) as server,
    ):
        try:
            until = time.monotonic() + 60
            while not _answers(ready):
                if server.poll() is not None or time.monotonic() > until:
                    sys.exit(f"triton: {Path(command[0]).name} did not start; see {log}")
                time.sleep(0.2)
            yield server
        finally:
            server.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def measure(name: str, pid: int, remote: Remote, clients: int, seconds: float) -> str:
    """Ask with so many clients, one image at a time, and return a row."""
    size = remote.package.meta.input_size
    times: list[float] = []
    before, stop = processor_s(pid), time.perf_counter() + seconds

    def ask(seed: int) -> None:
        pixels = np.random.default_rng(seed).integers(0, 256, (1, 1, size, size), dtype=np.uint8)
        while (begun := time.perf_counter()) < stop:
            remote.run(pixels)
            times.append(time.perf_counter() - begun)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = remote.since()
    if counts["local"] or counts["failed"]:
        sys.exit(f"triton: {name} did not answer throughout: {dict(counts)}; {remote.reason}")
    used = 1000 * (processor_s(pid) - before) / len(times)
    return f"| {name} | {clients} | {percentiles(times)} | {len(times) / seconds:.1f} | {used:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, required=True, help="with nvidia-pytriton, numpy 1.26, onnxruntime")
    parser.add_argument("--model", default="pneumonia")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    found = triton_python(chosen.environment.absolute())
    package = Package.open(chosen.model)
    local = runtime.open_engine(package, threads=chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        root, packages = Path(folder), Path(found["packages"])
        triton.export(package, root / "repository", backend="python", threads=chosen.threads)
        backends, server = root / "backends/python", packages / "pytriton/tritonserver"
        shutil.copytree(server / "backends/python", backends)
        stub = server / "python_backend_stubs" / found["python"] / "triton_python_backend_stub"
        shutil.copy(stub, backends)
        (backends / stub.name).chmod(0o755)
        libraries = f"{found['libraries']}:{packages / 'nvidia_pytriton.libs'}"
        port = free_port()
        command = [
            str(server / "bin/tritonserver"), "--model-repository", str(root / "repository"),
            "--backend-directory", str(backends.parent), "--http-address", "127.0.0.1", "--http-port", str(port),
            "--allow-grpc", "false", "--allow-metrics", "false",
        ]  # fmt: skip
        data, own = root / "clinic", free_port()
        database = Store.open(data)
        secret = access.create(database, "benchmark", "administrator", "default")
        database.close()
        serve = [sys.executable, "-m", "wetread", "serve", "--data", str(data), "--port", str(own)]
        settings = {
            "WETREAD_MODELS": chosen.model, "WETREAD_THREADS": str(chosen.threads), "WETREAD_RUNTIME": "onnxruntime",
        }  # fmt: skip
        print(f"load before {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {package.name}, {chosen.threads} threads")
        print("| server | clients | p50 ms | p95 ms | images/s | CPU ms/image |\n|---|---|---|---|---|---|")
        # Triton's Python looks where it was started, and ignores PYTHONPATH: so it finds this numpy before another.
        environment = os.environ | {"LD_LIBRARY_PATH": libraries}
        ready = f"http://127.0.0.1:{port}/v2/health/ready"
        with started(command, environment, packages, ready) as process:
            _rows("Triton, Python back end", process.pid, package, f"http://127.0.0.1:{port}", "", local, chosen)
        ready = f"http://127.0.0.1:{own}/v2/health/ready"
        with started(serve, os.environ | settings, root, ready) as process:
            _rows("wetread serve", process.pid, package, f"http://127.0.0.1:{own}", secret, local, chosen)


def _rows(
    name: str, pid: int, package: Package, base: str, secret: str, local: runtime.Engine, chosen: argparse.Namespace
) -> None:
    remote = Remote(package, f"{base}/{package.name}", local, token=secret)
    if remote.breaker.state != "closed":
        sys.exit(f"triton: {name} is not trusted: {remote.reason}")
    for clients in chosen.clients:
        print(measure(name, pid, remote, clients, chosen.seconds), flush=True)
    remote.close()


if __name__ == "__main__":
    main()
