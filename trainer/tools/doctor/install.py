"""TransformerEngine, installed into this environment: pip in words, with a log, and not tried again at every start.

The extra `fp8` of setup.cfg names it, and it finds the core library for the CUDA of the torch that is there. Its torch part is compiled
here, unless its makers have a finished one for this torch; so it must be built without pip's isolation, against this environment's
torch, and needs in it what its setup.py uses and the CUDA headers that torch's own packages lack.

source   TransformerEngine 2.20: setup.py, build_tools/ of transformer_engine_torch
"""

import configparser
import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from trainer import files, lease, locks
from trainer.config.cluster import Cluster
from trainer.config.schema import PrecisionConfig
from trainer.precision.decide import Facts, lacking, setup_command
from trainer.precision.recipes import recipe_of
from trainer.safety.parent import end_with_parent
from trainer.text import duration, one_line, shortened
from trainer.tools.doctor.ask import ask
from trainer.tools.doctor.examine import BACKEND, TORCH
from trainer.tools.doctor.machine import read_machine

TOOLS = ("setuptools>=77", "wheel", "packaging", "ninja")
"""What the build imports or runs."""

HEADERS = {
    "12": ("nvidia-cuda-runtime-cu12", ("nvidia-cuda-nvcc-cu12", "nvidia-cuda-cccl-cu12")),
    "13": ("nvidia-cuda-runtime", ("nvidia-cuda-crt", "nvidia-cuda-cccl")),
}
"""By CUDA's major version: the package that says which CUDA torch brought, and those of the same version with what its headers include."""

PARTS = ("transformer-engine", "transformer-engine-torch", "transformer-engine-cu12", "transformer-engine-cu13")
"""All packages that TransformerEngine consists of."""

BYTES_A_JOB = 2e9
"""Memory that one compiler may need."""

_CAUSE = re.compile(r"fatal error: |: error: |: not found$|No space left on device|Killed signal|^MemoryError")
"""In a line that names a cause, which pip buries under what followed from it."""

Say = Callable[[str], None]


def is_installed() -> bool:
    """Whether there is something under TransformerEngine's name; whether it works is asked of another process."""
    importlib.invalidate_caches()
    found = find_spec("transformer_engine")
    return found is not None and found.origin is not None  # pip leaves empty folders behind, which Python would import


def install_for(cluster: Cluster, wanted: PrecisionConfig, say: Say) -> None:
    """Installs TransformerEngine where a launch asks for fp8, lacks nothing else for it, and did not fail at it before."""
    if cluster.precision != "fp8" or cluster.use_cpu or is_installed() or requirement() is None:
        return
    machine = read_machine()
    if not machine.num_visible:
        return
    if failed := _failed_before():
        say(f"TransformerEngine is not installed: {failed}. {setup_command()} tries again")
        return
    cuda = ask((TORCH,), None)[TORCH].get("cuda")
    gpus = [Facts("cuda", True, gpu=gpu.name, capability=gpu.capability, cuda=_pair(cuda)) for gpu in machine.gpus]
    if cuda is None or all(lacking(recipe_of(wanted.recipe, gpu.capability), gpu) for gpu in gpus):
        return  # the run says so, and needs no TransformerEngine for it
    if failure := install(say, again=False):
        outcome = "is refused, as precision.required asks" if wanted.required else "goes on in bf16"
        say(
            f"{failure}. So the run {outcome}, and this is not tried again at every start: {setup_command()} tries again"
        )


def install(say: Say, *, again: bool) -> str | None:
    """Installs it, one process of this environment at a time; returns why it could not, as a sentence without its full stop.

    again   whether to do so though it failed before
    """
    try:
        with _alone(say):
            if not again and (failed := _failed_before()):  # in the process that was waited for
                return f"TransformerEngine is not installed: {failed}"
            return _install(say)
    except OSError as error:
        return f"TransformerEngine could not be installed into {sys.prefix} ({one_line(error)})"


def _alone(say: Say) -> locks.Lock:
    """Waits until no other process installs here: several runs may be started at once, and machines may share a disk."""
    path, is_logged = _place("lock"), False
    while (lock := locks.take(path)) is None:
        if not is_logged:
            say(f"another process installs TransformerEngine ({lease.holder(path)}): waiting for it")
            is_logged = True
        time.sleep(0.5)
    return lock


def _install(say: Say) -> str | None:
    works = ask((BACKEND,), None)[BACKEND]
    if works.get("name"):
        _place("failed").unlink(missing_ok=True)
        say(f"{works['name']} is installed")
        return None
    torch = ask((TORCH,), None)[TORCH]
    if not torch.get("cuda"):
        words = torch.get("problem", "it was built without")
        return f"TransformerEngine cannot be installed: it is compiled for the torch that is here, and that has no CUDA ({words})"
    log, started = _place("log"), time.monotonic()
    say(
        f"installing TransformerEngine ({requirement()}) for fp8: part of it is compiled here unless there is a finished one for this torch, "
        f"which takes minutes, and up to an hour on few cores; what pip says: {log}"
    )
    failure = _pip(log, torch["cuda"], replace=is_installed())
    if failure is None:
        works = ask((BACKEND,), None)[BACKEND]
        if works.get("name"):
            _place("failed").unlink(missing_ok=True)
            say(f"{works['name']} was installed in {duration(time.monotonic() - started)}")
            return None
        failure = f"it is there and cannot be imported: {works.get('problem', 'pip installed something else')}"
    note = {"for": _what(), "when": time.strftime("%Y-%m-%d %H:%M"), "why": failure}
    files.write_atomic(_place("failed"), json.dumps(note))
    return f"TransformerEngine could not be installed ({failure}; all of it: {log})"


def _pip(log: Path, cuda: str, *, replace: bool) -> str | None:
    """Runs pip, for the tools first and then for the extra; returns its last words that say something, None when all went well.

    replace   whether what is there has to go first: pip would find it, and leave it as it is
    """
    headers = header_packages(cuda)
    environment = {**build_variables(from_packages=bool(headers)), **os.environ}
    quiet = ("--disable-pip-version-check", "--no-input")
    steps = [
        *([["uninstall", "--yes", *quiet, *PARTS]] if replace else []),
        ["install", *quiet, "--progress-bar", "off", *TOOLS, *headers],
        # pip keeps what it compiled by its version alone, and what was compiled for another torch does not load: hence no cache.
        ["install", *quiet, "--progress-bar", "off", "--no-cache-dir", "--no-build-isolation", *what_to_install()],
    ]
    with open(log, "w", encoding="utf-8") as out:
        for step in steps:
            command = [sys.executable, "-P", "-m", "pip", *step]
            out.write(f"{shlex.join(command)}\n")
            out.flush()
            code = _run(command, environment, out)
            if code:
                said = last_words(log.read_text(encoding="utf-8", errors="replace"))
                return shortened(said or f"pip ended with {code}", 300)
    return None


def _run(command: list[str], environment: dict[str, str], out: Any) -> int:
    """A command with all that it starts, none of which stays when this process is asked to stop."""
    # A request that came within Popen would end this process with nobody knowing of the other: it is held back for that long.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})

    def begin() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        end_with_parent()

    try:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=begin,
        )
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def last_words(output: str) -> str | None:
    """The line of pip's output that says why it failed: the first that a compiler or the system has said, or else pip's last."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    causes = [line for line in lines if _CAUSE.search(line)]
    ends = [line for line in lines if line.startswith("ERROR:")]
    return next(iter([*causes, *reversed(ends), *reversed(lines)]), None)


def header_packages(cuda: str) -> list[str]:
    """Requirements of the header packages of torch's own CUDA; none where that did not come from packages, but from a toolkit."""
    runtime, packages = HEADERS.get(cuda.split(".")[0], ("", ()))
    try:
        major, minor = version(runtime).split(".")[:2]
    except (PackageNotFoundError, ValueError):
        return []
    return [f"{package}=={major}.{minor}.*" for package in packages]


def build_variables(*, from_packages: bool) -> dict[str, str]:
    """The environment of the build; what somebody set already stays."""
    jobs = min(len(os.sched_getaffinity(0)), int(psutil.virtual_memory().available / BYTES_A_JOB))
    return {
        "NVTE_FRAMEWORK": "pytorch",
        "NVTE_WITH_NCCL_EP": "0",  # experts over several machines: wants a newer NCCL than torch brings
        "MAX_JOBS": str(max(1, jobs)),
        **({"NVTE_BUILD_USE_NVIDIA_WHEELS": "1"} if from_packages else {}),
    }


def requirement() -> str | None:
    """What this package requires for fp8, by its setup.cfg or by what a wheel took over from that; None where neither is there."""
    if (checkout := files.checkout_folder()) is not None:
        setup = configparser.ConfigParser()
        setup.read(checkout / "setup.cfg", encoding="utf-8")
        return setup.get("options.extras_require", "fp8").strip()
    found = distributions(name="accelerate-trainer", path=[str(files.PACKAGE.parent)])
    noted = [line for each in found for line in each.requires or ()]
    return next((line.partition(";")[0].strip() for line in noted if re.search(r"extra *== *.fp8.", line)), None)


def what_to_install() -> list[str]:
    """pip's words for it: the extra of this checkout, or the requirement itself."""
    checkout = files.checkout_folder()
    return ["-e", f"{checkout}[fp8]"] if checkout else [requirement() or ""]


def _what() -> str:
    """What a failure is of: with another torch, Python or requirement it is tried again."""
    return f"{requirement()}, torch {version('torch')}, Python {sys.version_info.major}.{sys.version_info.minor}"


def _failed_before() -> str | None:
    """When and why the same installation failed; None when it did not."""
    try:
        note = json.loads(_place("failed").read_text(encoding="utf-8"))
        words = f"that failed on {note['when']} ({note['why']}; all of it: {_place('log')})"
        return words if note["for"] == _what() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _place(kind: str) -> Path:
    """A file about the installation, in the environment that it is of."""
    return Path(sys.prefix, f"fp8-install.{kind}")


def _pair(cuda: str | None) -> tuple[int, int] | None:
    major, _, minor = (cuda or "").partition(".")
    return (int(major), int(minor)) if major and minor.isdigit() else None
