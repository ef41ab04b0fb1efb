"""What a person reads, on machines of several kinds."""

from dataclasses import replace

import pytest

from tests.messages import says
from tests.unit.tools.doctor.machines import A100, CPU, H100, answers, diagnosis, machine
from trainer.precision.decide import NO_DEVICE, Decision
from trainer.tools.doctor.diagnosis import Launch
from trainer.tools.doctor.show import text


def lines(monkeypatch, there, found, launch=None):
    return text(replace(diagnosis(monkeypatch, there, found), launch=launch)).splitlines()


def test_a_machine_with_fp8_is_told_what_it_has_and_what_to_type(monkeypatch):
    said = lines(monkeypatch, machine(H100, H100, H100, H100), answers(H100, num_gpus=4))
    says(said[0], "Python 3.12.3", "16 cores", "torch 2.11.0", "CUDA 13.0")
    says(said[1], "580.95.05", "4 x NVIDIA H100", "85.5 GB", "9.0")
    says(said[2], "TransformerEngine 2.20.2")
    says(said[-2], "cluster file", "4gpu_bf16")
    assert said[-1].startswith("next: ./launch.sh doctor 4gpu_fp8 RECIPE")
    assert all(line.split("  ")[1] for line in said[5:13])


@pytest.mark.parametrize(
    ("there", "found", "words"),
    [
        (
            machine(),
            answers(CPU, backend=None, cuda=None),
            ("built without CUDA", "no NVIDIA driver; no GPU", "TransformerEngine is not installed"),
        ),
        (
            machine(H100),
            answers(H100, backend=None, num_gpus=1),
            ("next: ./launch.sh --setup fp8 (compiles", "then ./launch.sh doctor again"),
        ),
        (machine(A100), answers(A100, num_gpus=1), ("needs 8.9", "next: ./launch.sh 1gpu_bf16 RECIPE")),
        (
            machine(H100, A100),
            answers(H100, num_gpus=2),
            ("1 x NVIDIA H100", "1 x NVIDIA A100", "what follows is of the first"),
        ),
        (machine(H100, H100, num_visible=1), answers(H100, num_gpus=1), ("CUDA_VISIBLE_DEVICES leaves 1",)),
        (
            machine(H100),
            answers(CPU, problem="RuntimeError: the driver is too old"),
            ("torch can use none: RuntimeError: the driver is too old", "next: a torch for this driver"),
        ),
        (machine(H100), answers(CPU, cuda=None), ("torch can use none: it was built without CUDA",)),
        (
            machine(problem="NVMLError: mismatch"),
            answers(CPU),
            ("the NVIDIA driver does not answer (NVMLError: mismatch); no GPU",),
        ),
        (
            machine(),
            {**answers(CPU), "torch": {"problem": "ImportError: libtorch.so"}},
            ("torch does not work: ImportError: libtorch.so",),
        ),
        (
            machine(H100),
            {**answers(H100, num_gpus=1), "backend": {"problem": "OSError: x"}},
            ("TransformerEngine cannot be imported: OSError: x",),
        ),
    ],
)
def test_what_is_missing_is_told(monkeypatch, there, found, words):
    said = "\n".join(lines(monkeypatch, there, found))
    assert [word for word in words if word not in said] == [], said
    assert said.isascii()


def test_a_launch_is_told_with_the_sentence_of_its_decision(monkeypatch):
    fallback = Decision("fp8", "bf16", NO_DEVICE, recipe="current", title="current scaling, hybrid")
    remark = "torch.compile is left out: it needs a C++ compiler"
    said = lines(monkeypatch, machine(), answers(CPU), Launch("1gpu_fp8", "mine", 1, fallback, None, (remark,)))
    assert ["a launch of mine with 1gpu_fp8 (1 process):", f"  {fallback.sentence}", f"  {remark}"] == said[-6:-3]
    said = lines(monkeypatch, machine(), answers(CPU), Launch("4gpu_fp8", "mine", 4, None, "it wants 4 GPUs"))
    assert said[-5:-3] == ["a launch of mine with 4gpu_fp8 (4 processes):", "  would not train: it wants 4 GPUs"]
    granted = Decision("bf16", "bf16", "as the cluster file asks")
    assert (
        lines(monkeypatch, machine(), answers(CPU), Launch("cpu", "mine", 1, granted, None))[-1]
        == "next: the same words without doctor"
    )
