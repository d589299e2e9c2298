"""The environment of a run: device, threads, versions, commit. Results depend on it."""

from __future__ import annotations

import functools
import logging
import os
import platform
import shutil
import subprocess
import sys
from hashlib import sha256
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch

from mnist_exp.errors import BadInput
from mnist_exp.machine import count_cores, count_idle_cores
from mnist_exp.paths import CONF, IS_INSTALLED, REPOSITORY, SOURCES
from mnist_exp.tracking import get_user
from mnist_exp.training.distributed import SINGLE, ProcessGroup, get_process_group

log = logging.getLogger(__name__)

AVAILABLE_THREADS = min(torch.get_num_threads(), count_cores())  # the first: OMP_NUM_THREADS
# Floating-point operations per step. Measured by benchmarks/threads.py on two quiet cores: up to
# 4e7, a second thread gains nothing; from 1e8 on, a step is mostly 1.3 to 1.9 times as fast.
THREADED_FROM = 1e8
TRAINING_FLOPS = 3  # times those of the forward pass: the backward pass takes twice as many


def list_devices() -> list[str]:
    """The values of trainer.device on this machine besides "auto", the fastest first."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [*(["cuda", *cuda] if cuda else []), *mps, "cpu"]


def choose_device(name: str, group: ProcessGroup = SINGLE) -> torch.device:
    """The device with this name; "auto" is CUDA, else MPS, else the CPU.

    Of several processes, each takes the GPU with its local rank; MPS serves only one process.
    Raises BadInput for a device that this machine does not have.
    """
    present = list_devices()
    if group.world_size > 1 and "mps" in present:
        present.remove("mps")
    if name == "auto":
        name = present[0]
    if name == "cuda" and group.world_size > 1:
        name = f"cuda:{group.local_rank}"
    if name not in present:
        raise BadInput(f"trainer.device={name}: this machine has {', '.join(present)}")
    return torch.device(name)


def set_arithmetic(deterministic: bool, compiles: bool = True) -> None:
    """Let torch compute float32 in full, and, if wanted, only by algorithms that give equal bits.

    Deterministic algorithms are free on a CPU. On CUDA some operations get slower with them, and
    those that have none raise an error; without them, two equal runs may differ in the last bits.

    TF32 would round the factors of float32 products to 10 bits. It is off by default for matrix
    products, but not for convolutions. That costs speed on a GPU's tensor cores, which
    trainer.precision=bfloat16 brings back.

    compiles: whether a model may be compiled. For that, torch imports its compiler: a second.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    if compiles:
        torch.use_deterministic_algorithms(deterministic)
    else:
        torch.set_deterministic_debug_mode("error" if deterministic else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def cpu_supports_float16() -> bool:
    mkldnn = torch.backends.mkldnn.is_available()
    return mkldnn and torch.ops.mkldnn._is_mkldnn_fp16_supported()


def find_cxx_compiler() -> str:
    """The compiler that torch.compile calls on a CPU."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")


def check_support(key: str, value: object, device: torch.device) -> str | None:
    """Why this device does not support this value of the config and what to use, or None."""
    match key, value, device.type:
        case "trainer.precision", "float16", "cpu" if not cpu_supports_float16():
            return "this CPU does not compute in float16; use bfloat16"
        case "trainer.precision", "float64", "mps":
            return "mps does not compute in float64; use float32, or trainer.device=cpu"
        case "batch_size", int(size), _ if left := size % (count := get_process_group().world_size):
            near = [str(whole) for whole in (size - left, size - left + count) if whole]
            return f"cannot be divided evenly among {count} processes; use {' or '.join(near)}"
        case "trainer.compile", True | str(), "cpu" if shutil.which(find_cxx_compiler()) is None:
            return f"needs a C++ compiler, but there is no {find_cxx_compiler()}; use false"
        case "trainer.compile", True | str(), "cuda" if find_spec("triton") is None:
            return "needs the package triton, which is not installed; use false"
    return None


def choose_threads(forward_flops: float) -> int:
    """What "auto" is for a new training: as many as there are idle cores, or one for a small step.

    Threads wait for each other at every layer, so one of them on a busy core delays all.
    forward_flops: of the forward pass of a step.
    """
    threads = count_threads(forward_flops)
    if threads > 1 and (idle := max(1, count_idle_cores())) < threads:
        log.info("trainer.threads=%d, since other processes run on the other cores", idle)
        return idle
    return threads


def count_threads(forward_flops: float) -> int:
    """One for a small step, which is over before a second thread wakes up, else all available."""
    return 1 if TRAINING_FLOPS * forward_flops < THREADED_FROM else AVAILABLE_THREADS


def set_threads(wanted: str | int, forward_flops: float) -> None:
    """Set the threads of torch on a CPU, on which the last bits of the results depend.

    "auto", in a checkpoint from before `choose_threads` was recorded: what `count_threads` says.
    """
    torch.set_num_threads(count_threads(forward_flops) if wanted == "auto" else int(wanted))


def device_name(device: torch.device) -> str:
    """The model of a GPU, or the type of device and the threads of torch on it.

    With the number of processes if there are several.
    """
    threads, processes = torch.get_num_threads(), get_process_group().world_size
    name = f"{device.type}, {threads} thread{'s' * (threads > 1)}, {platform.machine()}"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return f"{name}, {processes} processes" if processes > 1 else name


def tags(device: torch.device | None = None) -> dict[str, str]:
    """Commit, dirty state, versions and device, by MLflow's own names where there are some.

    device: None for a sweep, whose jobs may have different ones.
    """
    commit = run_git("rev-parse", "HEAD", explain=True)
    changes = run_git("status", "--porcelain")
    of_device = {"device": device_name(device)} if device else {}
    return {
        "mlflow.source.git.commit": (commit or b"unknown").decode().strip(),
        "mlflow.source.git.dirty": "unknown" if changes is None else str(bool(changes)).lower(),
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": get_user(),
        "host": platform.node(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # its own class would make a tracker import torch
        **of_device,
    }


def code_digest() -> str:
    """12 hex digits of the SHA-256 of src/ when this was first called, and of conf/ now.

    Python reads a module once, but Hydra reads its YAML files for each job.
    """
    return sha256((_source_digest() + files_digest(CONF)).encode()).hexdigest()[:12]


@functools.cache
def _source_digest() -> str:
    return files_digest(SOURCES)


def files_digest(folder: Path) -> str:
    """SHA-256 of the names and bytes of all files in a folder except caches and hidden files."""
    digest = sha256()
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(p == "__pycache__" or p.startswith(".") for p in parts):
            for content in ("/".join(parts).encode(), path.read_bytes()):
                digest.update(sha256(content).digest())
    return digest.hexdigest()


@functools.cache  # reads many files, which takes a tenth of a second
def installed_versions() -> str:
    """Every installed distribution as a line name==version: a constraints file for pip."""
    packages = (distribution.metadata for distribution in metadata.distributions())
    found = {(package["Name"], package["Version"]) for package in packages}
    return "".join(f"{name}=={version}\n" for name, version in sorted(found))


def run_git(*arguments: str, explain: bool = False) -> bytes | None:
    """The output of git in this repository, or None without git or a repository.

    Whose files these are does not matter: this process runs their code already. explain: warn of
    the reason, once.
    """
    trust = () if IS_INSTALLED else ("-c", "safe.directory=*")
    try:
        command = ["git", *trust, *arguments]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout
    except OSError as error:
        reason = f"git: {error.strerror}"
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip().partition("\n")[0]
    if explain and (REPOSITORY / ".git").exists():  # not a copy without its history
        warn_of_git(reason)
    return None


@functools.cache
def warn_of_git(reason: str) -> None:
    log.warning("the run's commit is unknown (%s)", reason)
