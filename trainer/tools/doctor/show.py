"""A diagnosis for a person: what there is, what it can compute in, what a launch would do, and what to type next."""

from collections import Counter

from trainer.config.folders import command_line
from trainer.precision.decide import setup_command
from trainer.text import numbered, size, table
from trainer.tools.doctor.diagnosis import Diagnosis, Launch
from trainer.tools.doctor.machine import Gpu


def text(diagnosis: Diagnosis) -> str:
    """All of it."""
    rows = [("precision", "here", "because")]
    rows += [(_called(row.asked), row.possible, row.reason) for row in diagnosis.rows]
    parts = [f"{_versions(diagnosis)}\n{_gpus(diagnosis)}\n{_backend(diagnosis)}", table(rows)]
    parts += ["\n".join(f"{'ok ' if check.is_fine else 'look'}  {check.words}" for check in diagnosis.host)] * bool(
        diagnosis.host
    )
    if diagnosis.launch:
        parts.append(_launch(diagnosis.launch))
    return "\n\n".join([*parts, f"the cluster file for this machine: {diagnosis.fits}\nnext: {_next(diagnosis)}"])


def _called(asked: str) -> str:
    return "no (fp32)" if asked == "no" else asked


def _versions(diagnosis: Diagnosis) -> str:
    machine, torch = diagnosis.machine, diagnosis.torch
    python = f"Python {machine.python} on {machine.cores} core{'s' if machine.cores > 1 else ''}"
    if "version" not in torch:
        return f"{python}; torch does not work: {torch['problem']}"
    cuda = f"built with CUDA {torch['cuda']}" if torch["cuda"] else "built without CUDA"
    return f"{python}; torch {torch['version']}, {cuda}"


def _gpus(diagnosis: Diagnosis) -> str:
    """Driver and GPUs, and why torch cannot use them where it cannot."""
    machine, torch = diagnosis.machine, diagnosis.torch
    if machine.driver is None:
        driver = f"the NVIDIA driver does not answer ({machine.problem})" if machine.problem else "no NVIDIA driver"
    else:
        driver = f"NVIDIA driver {machine.driver}"
    kinds = [f"{number} x {_gpu(gpu)}" for gpu, number in Counter(machine.gpus).items()]
    line = f"{driver}; {', '.join(kinds) or 'no GPU'}"
    if machine.num_visible < len(machine.gpus):
        line += f"; CUDA_VISIBLE_DEVICES leaves {machine.num_visible}"
    if len(kinds) > 1 and not diagnosis.has_idle_gpus:
        line += "; what follows is of the first"
    if diagnosis.has_idle_gpus:
        line += f"\ntorch can use none: {torch.get('problem') or 'it was built without CUDA'}"
    return line


def _gpu(gpu: Gpu) -> str:
    memory = size(gpu.memory_bytes) if gpu.memory_bytes else "memory unknown"
    capability = ".".join(map(str, gpu.capability)) if gpu.capability else "unknown"
    return f"{gpu.name} ({memory}, compute capability {capability})"


def _backend(diagnosis: Diagnosis) -> str:
    if problem := diagnosis.backend.get("problem"):
        return f"TransformerEngine cannot be imported: {problem}"
    return diagnosis.backend["name"] or "TransformerEngine is not installed"


def _launch(launch: Launch) -> str:
    processes = numbered(launch.num_processes, "process")
    remarks = [launch.decision.sentence] if launch.decision and not launch.refused else []
    if launch.refused:
        remarks.append(f"would not train: {launch.refused}")
    lines = "\n".join(f"  {line}" for line in (*remarks, *launch.remarks))
    return f"a launch of {launch.name} with {launch.cluster} ({processes}):\n{lines}"


def _next(diagnosis: Diagnosis) -> str:
    if diagnosis.has_idle_gpus:
        return f"a torch for this driver, or a driver for this torch; until then {command_line('cpu', 'RECIPE')}"
    if diagnosis.lacks_only_the_backend:
        return f"{setup_command()} (compiles TransformerEngine's torch part: minutes, up to an hour on few cores), then {command_line('doctor')} again"
    if diagnosis.launch and diagnosis.launch.is_as_asked:
        return "the same words without doctor"
    if diagnosis.fp8:
        return f"{command_line('doctor', diagnosis.fits.replace('bf16', 'fp8'), 'RECIPE')}, which says whether a recipe's model fits fp8"
    return command_line(diagnosis.fits, "RECIPE")
