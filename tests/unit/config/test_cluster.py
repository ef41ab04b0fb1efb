"""Which cluster file fits this machine, and what one must say."""

import pytest
import yaml

from tests.conftest import CLUSTER
from tests.messages import refuses, says
from trainer.config import cluster as clusters
from trainer.config.cluster_keys import unheard
from trainer.errors import ConfigError

# The machine


@pytest.mark.parametrize(
    ("number", "name"), [(0, "cpu"), (1, "1gpu_bf16"), (3, "1gpu_bf16"), (4, "4gpu_bf16"), (8, "4gpu_bf16")]
)
def test_the_cluster_file_fits_the_machine(monkeypatch, number, name):
    monkeypatch.setattr(clusters, "count_gpus", lambda: number)
    assert clusters.fitting_cluster() == name
    assert name in clusters.cluster_names()


@pytest.fixture
def driver(monkeypatch):
    """Makes a machine with some GPUs, or with no driver at all (None)."""
    import pynvml

    def no_driver():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    def make(number):
        monkeypatch.setattr(pynvml, "nvmlInit", no_driver if number is None else lambda: None)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: number)
        monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)

    return make


@pytest.mark.parametrize(
    ("visible", "number"), [("", 0), ("-1", 0), ("0", 1), ("0,1,3", 3), ("GPU-aa, GPU-bb", 2), ("0,1,2,3,4,5", 4)]
)
def test_only_the_visible_gpus_that_are_there_are_counted(monkeypatch, driver, visible, number):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    driver(4)
    assert clusters.count_gpus() == number
    driver(None)
    assert clusters.count_gpus() == 0


@pytest.mark.parametrize(("there", "number"), [(4, 4), (None, 0)])
def test_gpus_are_counted_by_their_driver(monkeypatch, driver, there, number):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver(there)
    assert clusters.count_gpus() == number


# Cluster files


@pytest.mark.parametrize("name", clusters.cluster_names())
def test_every_shipped_cluster_file_is_right(name):
    assert clusters.read_cluster(name).path.stem == name


def test_a_cluster_file_says_how_many_processes_and_which_precision(cluster):
    read = clusters.read_cluster(cluster())
    assert (read.num_processes, read.precision, read.use_cpu) == (2, "no", True)


@pytest.mark.parametrize(("written", "meant"), [(False, "no"), ("no", "no"), ("BF16", "bf16"), ("fp8", "fp8")])
def test_the_precision_is_read_as_it_is_meant(cluster, written, meant):
    assert clusters.read_cluster(cluster(mixed_precision=written)).precision == meant


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (None, "no"),
        ({}, "no"),
        ({"dynamo_backend": "INDUCTOR"}, "inductor"),
        ({"dynamo_backend": False}, "no"),
        ({"dynamo_backend": "no"}, "no"),
    ],
)
def test_the_compiler_is_read_as_accelerate_reads_it(cluster, written, meant):
    assert clusters.read_cluster(cluster(dynamo_config=written)).compiler == meant


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_processes": None}, ["num_processes"]),
        ({"mixed_precision": None}, ["mixed_precision"]),
        ({"distributed_type": None}, ["distributed_type"]),
        ({"num_processes": 0}, ["num_processes", 0, "at least 1"]),
        ({"num_processes": "two"}, ["num_processes", "'two'"]),
        ({"num_machines": 0}, ["num_machines", 0, "at least 1"]),
        (
            {"num_processes": 3, "num_machines": 2},
            ["num_processes", 3, "multiple", "num_machines", 2],
        ),
        ({"mixed_precision": "bf61"}, ["mixed_precision", "'bf61'", "'bf16'"]),
        (
            {"distributed_type": "NO"},
            ["distributed_type", "'NO'", "num_processes", 2, "MULTI_GPU"],
        ),
        (
            {"distributed_type": "MULTI_XPU"},
            ["distributed_type", "'MULTI_XPU'", "NVIDIA GPUs", "CPUs", "MULTI_GPU"],
        ),
        ({"distributed_type": "fsdp"}, ["distributed_type", "'fsdp'", "'FSDP'"]),
        ({"distributed_type": "FSDP2"}, ["distributed_type", "'FSDP2'", "'FSDP'"]),
        ({"distributed_type": "DeepSpeed"}, ["deepspeed_config"]),
        ({"distributed_type": "DDP"}, ["distributed_type", "'MULTI_GPU'"]),
        ({"distributed_type": "multi_gpu"}, ["distributed_type", "'MULTI_GPU'"]),
        ({"distributed_type": "TPU"}, ["distributed_type", "'TPU'", "NVIDIA GPUs", "CPUs"]),
        ({"mixed_precision": "fp32"}, ["mixed_precision", "'no'"]),
        ({"mixed_precision": "float32"}, ["mixed_precision", "'no'"]),
        ({"mixed_precision": "32-true"}, ["mixed_precision", "'no'"]),
        ({"mixed_precision": "bf16-mixed"}, ["mixed_precision", "'bf16'"]),
        ({"mixed_precision": "16-mixed"}, ["mixed_precision", "'fp16'"]),
        ({"mixed_precision": "half"}, ["mixed_precision", "'fp16'"]),
    ],
)
def test_a_wrong_cluster_file_is_refused_with_what_is_wrong(cluster, changes, words):
    with pytest.raises(ConfigError) as caught:
        clusters.read_cluster(cluster(**changes))
    says(caught.value, *words)


def test_everything_that_is_wrong_with_a_cluster_file_is_told(cluster):
    with pytest.raises(ConfigError) as caught:
        clusters.read_cluster(cluster(num_processes=0, mixed_precision="x", distributed_type="DEEPSPEED"))
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [", ["YAML"]),
        (b"[a, b]: 1", ["YAML", "line 1"]),
        (b"{a: b}: 1", ["YAML", "line 1"]),
        (b"<<: 3", ["YAML", "line 1"]),
        (b"2026-13-01: 3", ["YAML"]),
        (b"debug: true\n!!python/object:os.system x: 1", ["YAML", "line 2"]),
        (b"a: \xff", ["YAML"]),
        (b"", ["settings"]),
        (b"- 1", ["settings"]),
    ],
)
def test_a_file_that_is_no_cluster_file_is_refused(tmp_path, content, words):
    (tmp_path / "mine.yaml").write_bytes(content)
    with refuses(ConfigError, tmp_path / "mine.yaml", *words):
        clusters.read_cluster(str(tmp_path / "mine.yaml"))


def test_an_unknown_cluster_file_is_answered_with_the_nearest():
    with refuses(ConfigError, "'4gpu_bf61'", "'4gpu_bf16'"):
        clusters.read_cluster("4gpu_bf61")


def test_what_a_cluster_file_says_about_fp8_and_nobody_hears_is_told():
    assert unheard({"backend": "TE"}) == unheard(None) == unheard({}) == []
    (problem,) = unheard({"backend": "TE", "amax_history_length": 16})
    says(problem, "fp8_config.amax_history_length")
    (problem,) = unheard({"backend": "MSAMP"})
    says(problem, "fp8_config.backend", "'MSAMP'")


# A cluster file with another precision


def variant(path, **wanted):
    target = path.parent / "variant.yaml"
    clusters.write_variant(
        clusters.read_cluster(str(path)), target, **{"precision": "bf16", "compiled": False, **wanted}
    )
    return yaml.safe_load(target.read_text()), clusters.read_cluster(str(target))


def test_a_variant_of_a_cluster_file_differs_in_precision_and_compilation_only(cluster, tmp_path):
    path = tmp_path / "mine.yaml"
    cluster(gpu_ids="all", fp8_config={"backend": "TE"})
    content, read = variant(path, precision="fp8")
    assert content == {**CLUSTER, "gpu_ids": "all", "fp8_config": {"backend": "TE"}, "mixed_precision": "fp8"}
    assert (read.precision, read.num_processes, read.use_cpu) == ("fp8", 2, True)


def test_it_compiles_as_the_file_says_and_by_blocks_where_the_file_does_not_compile(cluster, tmp_path):
    path, own = tmp_path / "mine.yaml", {"dynamo_backend": "AOT_EAGER", "dynamo_mode": "default"}
    for said, meant in ((own, own), (None, clusters.COMPILED), ({"dynamo_backend": "NO"}, clusters.COMPILED)):
        cluster(dynamo_config=said)
        assert variant(path, compiled=True)[0]["dynamo_config"] == meant
        assert "dynamo_config" not in variant(path, compiled=False)[0]


def test_the_shipped_cluster_files_compile_in_the_same_way():
    files = {path.stem: yaml.safe_load(path.read_text()) for path in clusters.clusters_folder().glob("*.yaml")}
    assert len(files) >= 8
    compiled = {name: content["dynamo_config"] for name, content in files.items() if "dynamo_config" in content}
    assert files.keys() - compiled.keys() == {"cpu_fsdp2_2proc"}, (
        "which is for tests, whose models are smaller than what a compiler takes"
    )
    assert all(each == clusters.COMPILED for each in compiled.values())


def test_a_machine_without_a_compiler_is_told(monkeypatch, tmp_path):
    assert clusters.missing_compiler() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "a C++ compiler (g++) is needed" in clusters.missing_compiler()


# Several machines


SEVERAL = {"num_machines": 2, "num_processes": 4, "main_process_ip": "a", "main_process_port": 29500, "machine_rank": 0}


def test_each_machine_says_in_its_environment_who_it_is(cluster, monkeypatch):
    path = cluster(**SEVERAL)
    assert (clusters.read_cluster(path).machine_rank, clusters.read_cluster(path).options) == (0, ())
    for name, value in {"NNODES": "3", "NODE_RANK": "2", "MASTER_ADDR": "b", "MASTER_PORT": "4"}.items():
        monkeypatch.setenv(name, value)
    here = clusters.read_cluster(path)
    assert (here.num_machines, here.machine_rank, here.num_processes, here.num_local_processes) == (3, 2, 6, 2)
    given = dict(zip(here.options[::2], here.options[1::2], strict=True))
    assert given == {
        "--num_machines": "3",
        "--machine_rank": "2",
        "--main_process_ip": "b",
        "--main_process_port": "4",
        "--num_processes": "6",
    }


def test_a_file_for_one_machine_does_not_ask_the_environment(cluster, monkeypatch):
    before = clusters.read_cluster(cluster())
    monkeypatch.setenv("NODE_RANK", "2")
    monkeypatch.setenv("NNODES", "4")
    assert clusters.read_cluster(cluster()) == before


def test_one_machine_of_a_file_for_several_is_enough(cluster, monkeypatch):
    monkeypatch.setenv("NNODES", "1")
    here = clusters.read_cluster(cluster(**SEVERAL))
    assert (here.num_machines, here.num_processes, here.machine_rank) == (1, 2, 0)
    assert "--main_process_ip" not in here.options


@pytest.mark.parametrize(
    ("name", "value", "tokens"),
    [
        ("NODE_RANK", "2", ["machine_rank", 2]),
        ("NODE_RANK", "first", ["NODE_RANK", "first"]),
        ("NNODES", "0", ["num_machines", 0]),
        ("MASTER_PORT", "-1", ["MASTER_PORT", "-1"]),
        ("MASTER_PORT", "0", ["main_process_port", 0]),
    ],
)
def test_a_machine_that_says_what_cannot_be_is_refused(cluster, monkeypatch, name, value, tokens):
    monkeypatch.setenv(name, value)
    with refuses(ConfigError, *tokens):
        clusters.read_cluster(cluster(**SEVERAL))
