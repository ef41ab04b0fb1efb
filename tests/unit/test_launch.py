import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo
from accelerate.utils import DistributedType

import trainer
from tests import emulation
from tests.accelerators import forget_accelerator
from tests.messages import logged, refuses, says
from trainer.config.load import load
from trainer.errors import ConfigError, LaunchError
from trainer.launch.accelerator import _fsdp_plugin, make_accelerator, seed_streams
from trainer.launch.compile_choice import choose_compiler, compile_backend
from trainer.launch.environment import LaunchEnv, Sharding, num_threads
from trainer.launch.logging_setup import open_log
from trainer.launch.process_group import init_process_group, rank0_before_init


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """A plain environment here, and torch as it was for the other tests."""
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "TRAINER_", "OMP_NUM_THREADS")) or name in (
            "RANK",
            "WORLD_SIZE",
            "LOCAL_WORLD_SIZE",
        ):
            monkeypatch.delenv(name)
    threads, environment = torch.get_num_threads(), dict(os.environ)
    yield
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(environment)


def begin(tmp_path, world_size=1):
    place = LaunchEnv("no", True, world_size, True)
    return make_accelerator(place, precision="no", deterministic=False, seed=1, trackers=[], runs_folder=tmp_path)


def test_a_plain_start_is_one_process_in_fp32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert LaunchEnv.from_env() == LaunchEnv("no", True, 1, True)


def test_the_cluster_file_is_heard_through_the_environment(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert LaunchEnv.from_env() == LaunchEnv("bf16", False, 4, False)
    monkeypatch.setenv("TRAINER_ASKED_PRECISION", "fp8")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert LaunchEnv.from_env() == LaunchEnv("fp8", True, 4, False)


@pytest.mark.parametrize("name", ["DEEPSPEED", "MEGATRON_LM"])
def test_a_bare_launch_that_asks_for_another_sharding_is_refused_by_name_also_where_accelerate_would_drop_it(
    monkeypatch, name
):
    """On CPUs Accelerate makes plain data parallelism of it, and says nothing."""
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "false")
    LaunchEnv.from_env()
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(LaunchError) as caught:
        LaunchEnv.from_env()
    says(caught.value, name, "MULTI_GPU")
    assert caught.value.exit_code == 2


def test_how_the_model_is_sharded_is_heard_through_the_environment(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert LaunchEnv.from_env().sharding == Sharding(reshard_after_forward=True, block_classes=())
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "LlamaDecoderLayer, GPT2Block")
    assert LaunchEnv.from_env().sharding == Sharding(False, ("LlamaDecoderLayer", "GPT2Block"))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    assert LaunchEnv.from_env().sharding is None


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"FSDP_VERSION": "1"}, ["version 1", "fsdp_version: 2"]),
        ({"FSDP_VERSION": "2", "PARALLELISM_CONFIG_CP_SIZE": "2"}, ["cp_size"]),
        ({"FSDP_VERSION": "2", "ACCELERATE_MIXED_PRECISION": "fp16"}, ["fp16", "bf16"]),
        ({"FSDP_VERSION": "2", "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "4"}, ["dp_replicate_size"]),
    ],
    ids=str,
)
def test_a_bare_launch_that_asks_for_another_way_of_sharding_is_refused(monkeypatch, variables, words):
    for name, value in {"ACCELERATE_USE_FSDP": "true", **variables}.items():
        monkeypatch.setenv(name, value)
    with refuses(LaunchError, *words):
        LaunchEnv.from_env()


def test_a_cluster_file_that_says_fsdp_and_does_not_get_it_ends_the_launch(tmp_path):
    """Accelerate trains one process as it is, and several on CPUs with data parallelism, without a word."""
    place = LaunchEnv("no", True, 1, True, Sharding())
    with refuses(LaunchError, "FSDP", "1 process"):
        make_accelerator(place, precision="no", deterministic=False, seed=1, trackers=[], runs_folder=tmp_path)
    forget_accelerator()


def test_weights_are_gathered_in_bf16_and_gradients_summed_in_fp32():
    """By Accelerate's own policy the loss itself is rounded to bf16."""
    policy = _fsdp_plugin(Sharding(), "bf16").mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    assert not policy.cast_forward_inputs
    plugin = _fsdp_plugin(Sharding(reshard_after_forward=False), "no")
    assert plugin.mixed_precision_policy is None
    assert plugin.reshard_after_forward is False
    assert plugin.cpu_ram_efficient_loading is False


def test_processes_that_did_not_find_each_other_are_refused(tmp_path):
    with refuses(LaunchError, "2 processes", "group of 1"):
        begin(tmp_path, world_size=2)


def test_a_group_of_another_kind_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.launch.accelerator.SUPPORTED", ())
    with refuses(LaunchError, "cluster file", "NO"):
        begin(tmp_path)


def test_what_would_make_accelerate_convert_or_accumulate_by_itself_is_taken_away(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_FP8_BACKEND", "TE")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    accelerator = begin(tmp_path)
    assert "ACCELERATE_FP8_BACKEND" not in os.environ
    assert accelerator.gradient_accumulation_steps == 1


def test_what_a_cluster_file_says_of_fp8_to_accelerate_itself_is_told_to_be_unread(tmp_path, monkeypatch, caplog):
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils.launch import setup_fp8_env

    parsed = launch_command_parser().parse_args(["--fp8_backend", "te", "--fp8_margin", "3", "script"])
    passed_on = setup_fp8_env(parsed, {})
    assert "ACCELERATE_FP8_FORMAT" in passed_on
    for name, value in passed_on.items():
        monkeypatch.setenv(name, value)
    begin(tmp_path)
    logged(caplog, "fp8_config.margin")
    assert not any(name.startswith("ACCELERATE_FP8_") for name in os.environ)


def test_accelerate_under_fp8_is_told_to_take_transformer_engine_and_not_what_it_finds_first(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.accelerator.is_torchao_available", lambda: True)
    emulation.install()
    forget_accelerator()
    try:
        place = LaunchEnv("fp8", True, 1, True)
        accelerator = make_accelerator(
            place, precision="fp8", deterministic=False, seed=1, trackers=[], runs_folder=tmp_path
        )
        assert accelerator.mixed_precision == "fp8"
        assert accelerator.fp8_backend.value == "TE"
    finally:
        emulation.uninstall()
        forget_accelerator()


def test_a_reason_against_the_compiler_leaves_it_out_and_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    place = LaunchEnv("no", True, 1, True)
    make_accelerator(
        place,
        precision="no",
        deterministic=False,
        seed=1,
        trackers=[],
        runs_folder=tmp_path,
        uncompiled="these layers cannot be compiled",
    )
    assert os.environ["ACCELERATE_DYNAMO_BACKEND"] == "no"
    logged(caplog, "torch.compile", "these layers cannot be compiled")


@pytest.mark.parametrize(("local_rank", "told"), [("0", True), ("1", False)])
def test_what_all_processes_of_a_machine_know_alike_is_told_by_the_first_of_them(
    tmp_path, monkeypatch, caplog, local_rank, told
):
    begin(tmp_path)  # a process that is alone from the start, whatever the variable says of it afterwards
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    monkeypatch.setenv("ACCELERATE_FP8_MARGIN", "3")
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    place = LaunchEnv("no", True, 1, True)
    make_accelerator(
        place, precision="no", deterministic=False, seed=1, trackers=[], runs_folder=tmp_path, uncompiled="a reason"
    )
    assert os.environ["ACCELERATE_DYNAMO_BACKEND"] == "no"
    assert "ACCELERATE_FP8_MARGIN" not in os.environ
    assert ["torch.compile" in caplog.text, "fp8_config.margin" in caplog.text] == [told, told]


def test_without_a_compiler_in_the_cluster_file_there_is_nothing_to_tell(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("ACCELERATE_DYNAMO_BACKEND", raising=False)
    place = LaunchEnv("no", True, 1, True)
    make_accelerator(
        place, precision="no", deterministic=False, seed=1, trackers=[], runs_folder=tmp_path, uncompiled="a reason"
    )
    assert "torch.compile" not in caplog.text


def test_compiled_blocks_are_not_split_where_buckets_of_gradients_end(tmp_path, monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "optimize_ddp", True)
    monkeypatch.setattr("trainer.launch.compile_choice.left_uncompiled", lambda *_: None)
    choose_compiler(None, use_cpu=True)
    assert torch._dynamo.config.optimize_ddp is True, "nothing is compiled"
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    choose_compiler(None, use_cpu=True)
    assert torch._dynamo.config.optimize_ddp is False
    assert torch._dynamo.config.recompile_limit == 64


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_what_the_recipe_says_whatever_accelerate_has_set(tmp_path, monkeypatch, allowed):
    class OnAGpu(SimpleNamespace):
        def __init__(self, **_):
            torch.backends.cuda.matmul.allow_tf32 = (
                not allowed
            )  # Accelerate does so where it compiles and mixed_precision is no
            super().__init__(
                device=torch.device("cuda"),
                num_processes=1,
                distributed_type=DistributedType.MULTI_GPU,
                process_index=0,
            )

    monkeypatch.setattr("trainer.launch.accelerator.Accelerator", OnAGpu)
    place = LaunchEnv("no", True, 1, True)
    try:
        make_accelerator(
            place, precision="no", deterministic=False, seed=1, trackers=[], runs_folder=tmp_path, tf32=allowed
        )
        assert torch.backends.cuda.matmul.allow_tf32 is allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def test_one_process_meets_on_its_device():
    assert init_process_group(LaunchEnv("no", True, 1, True), deterministic=False).type == "cpu"


def test_the_largest_seed_of_a_recipe_leaves_room_for_every_rank():
    largest = load("shakespeare", [f"seed={2**63 - 1}"]).config.seed
    for rank in (0, 4095):
        seed_streams(largest, rank)
    with refuses(ConfigError, "9223372036854775808"):
        load("shakespeare", [f"seed={2**63}"])


def test_random_streams_are_those_of_seed_and_rank():
    drawn = []
    for seed, rank in ((1, 0), (1, 1), (1, 0)):
        seed_streams(seed, rank)
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[2] != drawn[1]


@pytest.mark.parametrize(
    ("chosen", "processes", "threads"), [(None, "1", 8), (None, "2", 4), (None, "99", 1), ("3", "2", 3)]
)
def test_the_cores_are_shared_among_the_processes_of_a_machine(monkeypatch, chosen, processes, threads):
    monkeypatch.setattr("trainer.launch.environment.num_cores", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    assert num_threads() == threads


def test_a_number_of_threads_that_the_launcher_chose_is_no_choice(monkeypatch):
    monkeypatch.setattr("trainer.launch.environment.num_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert num_threads() == 1
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert num_threads() == 8


def test_compiling_without_a_compiler_is_left_out_with_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert compile_backend(begin(tmp_path)) == "no"
    logged(caplog, "torch.compile")


def test_the_log_is_the_main_processs_story_and_the_others_warnings(tmp_path, monkeypatch):
    root, before, level = logging.getLogger(), list(logging.getLogger().handlers), logging.getLogger("trainer").level
    try:
        open_log(tmp_path / "run", is_main=True, console=logging.NullHandler())
        logging.getLogger("trainer.x").info("a decision")
        open_log(tmp_path / "run", is_main=False, console=logging.NullHandler())
        assert not logging.getLogger("trainer.x").isEnabledFor(logging.INFO)
    finally:
        root.handlers[:] = before
        logging.getLogger("trainer").setLevel(level)
    assert (tmp_path / "run" / "train.log").read_text().endswith("INFO a decision\n")


GROUP_OF_ONE = """
import gc, pathlib, sys
import torch
from accelerate import Accelerator
import torch._dynamo  # as every run has; its first import within DistributedDataParallel would keep the group by chance
from trainer.parallel import parallel_of

def group_threads():
    return sum(path.read_text().startswith("pt_gloo") for path in pathlib.Path("/proc/self/task").glob("*/comm"))

def work():
    torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    assert group_threads()
    parallel_of(Accelerator(cpu=True)).end(model)

work()
gc.collect()
print("left:", torch.distributed.is_initialized(), group_threads())
"""


def test_a_group_that_was_left_is_not_torn_down_under_python_s_lock(tmp_path):
    """Its destructor waits for threads that may wait for that lock: now and then a run hung at its end, having finished."""
    done = subprocess.run(
        [sys.executable, "-c", GROUP_OF_ONE, str(tmp_path / "rendezvous")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("left: False") and not done.stdout.startswith("left: False 0"), done.stdout


# Before the ranks join


@pytest.fixture
def two_ranks(monkeypatch):
    """The launcher's store of two ranks, and the environment of one of them."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }

    def be(rank):
        for name, value in {**place, "RANK": str(rank)}.items():
            monkeypatch.setenv(name, value)
        return store

    return be


WAITING = "from trainer.launch.process_group import rank0_before_init; print('there', flush=True); rank0_before_init(lambda: 1); print('joins', flush=True)"


def waiting_rank():
    other = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        cwd=Path(trainer.__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "there\n"
    return other


def test_a_process_that_is_alone_waits_for_nobody(monkeypatch):
    assert rank0_before_init(lambda: 7) == 7
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert rank0_before_init(lambda: pytest.fail("it is rank 0's work")) is None


def test_the_other_ranks_wait_until_rank_0_has_done_its_work(two_ranks):
    two_ranks(1)
    other = waiting_rank()
    two_ranks(0)
    assert rank0_before_init(lambda: (time.sleep(1.0), other.poll())[1]) is None, "it still waits"
    assert other.stdout.readline() == "joins\n"
    assert other.wait(30) == 0


def test_a_rank_that_waits_for_one_that_was_refused_ends_at_its_launchers_signal(two_ranks):
    two_ranks(1)
    other = waiting_rank()
    two_ranks(0)

    def refused():
        raise LaunchError("another process is training")

    with refuses(LaunchError, "another process"):
        rank0_before_init(refused)
    other.terminate()
    assert other.wait(30) == -15


def test_a_launcher_that_is_gone_before_the_ranks_have_met_is_told(two_ranks, monkeypatch):
    two_ranks(1)

    class Gone:
        def check(self, keys):
            raise RuntimeError("Broken pipe")

    monkeypatch.setattr("trainer.launch.process_group._launchers_store", Gone)
    with refuses(LaunchError, "rank 0", "Broken pipe"):
        rank0_before_init(lambda: None)
