"""What a cluster file may say, held against Accelerate itself: its keys, what `accelerate config` writes, and what its launcher does with it."""

import pytest
import yaml
from accelerate.commands.config import cluster as wizard
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DynamoBackend, launch
from accelerate.utils.constants import TORCH_DYNAMO_MODES

from tests.commands import trainer
from trainer.config.cluster import read_cluster
from trainer.config.cluster_keys import COMPILER_KEYS, COMPILER_MODES, COMPILERS, KEYS, unheard
from trainer.config.fsdp_keys import FSDP_KEYS, OF_A_SIZE, PARALLEL_SIZES
from trainer.errors import ConfigError


def problems_of(path):
    with pytest.raises(ConfigError) as caught:
        read_cluster(str(path))
    return caught.value.problems


def launched(path):
    """What Accelerate's launcher makes of a cluster file and of what it is told besides; no process is started."""
    cluster = read_cluster(str(path))
    args = launch_command_parser().parse_args(
        ["--config_file", str(path), "--mixed_precision", cluster.precision, *cluster.options, "-m", "trainer"]
    )
    return _validate_launch_command(args)[0]


# Accelerate's keys


def test_every_key_of_accelerate_is_known_and_no_other():
    assert KEYS.keys() - {"dynamo_backend", "fp16"} == ClusterConfig.__dataclass_fields__.keys()


def test_the_words_that_accelerate_knows_are_those_known_here():
    assert list(COMPILERS) == DynamoBackend.list()
    assert list(COMPILER_MODES) == TORCH_DYNAMO_MODES
    args = vars(launch_command_parser().parse_args(["trainer"]))
    assert {name.removeprefix("dynamo_") for name in args if name.startswith("dynamo_")} == COMPILER_KEYS.keys()
    told = {
        name: value if not isinstance(value, tuple) else list(value)
        for name, value in args.items()
        if name.startswith("fp8_")
    }
    te = {
        name: value
        for name, value in told.items()
        if not name.endswith(("backend", "opt_level", "all_gather", "inner_dim"))
    }
    assert len(te) >= 7
    assert unheard(te) == []


# What `accelerate config` writes

ONE, GPUS, CPUS = (
    ("Which type of machine", "NO"),
    ("Which type of machine", "MULTI_GPU"),
    ("Which type of machine", "MULTI_CPU"),
)
FOUR = ("How many GPU", 4)
WRITTEN = {
    "one GPU": ([ONE], {"num_processes": 1, "use_cpu": False, "precision": "no"}),
    "one GPU by its number": (
        [ONE, ("What GPU", "1"), ("Do you wish to use mixed", "bf16")],
        {"environment": {"CUDA_VISIBLE_DEVICES": "1"}, "precision": "bf16"},
    ),
    "one process on CPUs": (
        [ONE, ("Do you want to run your training on CPU", True)],
        {"num_processes": 1, "use_cpu": True},
    ),
    "four GPUs": ([GPUS, FOUR], {"num_processes": 4, "use_cpu": False, "options": ()}),
    "two of the GPUs": (
        [GPUS, ("How many GPU", 2), ("What GPU", "0,2")],
        {"num_processes": 2, "environment": {"CUDA_VISIBLE_DEVICES": "0,2"}},
    ),
    "processes on CPUs": ([CPUS, ("How many processes", 2)], {"num_processes": 2, "use_cpu": True}),
    "NUMA": ([GPUS, FOUR, ("Would you like to enable numa", True)], {"environment": {"ACCELERATE_CPU_AFFINITY": "1"}}),
    "compiled": (
        [ONE, ("Do you wish to optimize", True), ("Do you want to customize", True), ("Which mode", "max-autotune")],
        {"compiler": "inductor"},
    ),
    "checked collectives": ([GPUS, FOUR, ("Should distributed operations", True)], {"num_processes": 4}),
    "sharded": (
        [
            *(
                GPUS,
                FOUR,
                ("Do you want to use FullyShardedDataParallel", True),
                ("What should be your FSDP version", 2),
            ),
            *(("Do you want to enable CPU RAM", False), ("Do you wish to use mixed", "bf16")),
        ],
        {"num_processes": 4, "precision": "bf16", "options": ()},
    ),
    "fp8": ([ONE, ("Do you wish to use mixed", "fp8"), ("Which FP8 backend", "TE")], {"precision": "fp8"}),
    "two machines": (
        [
            GPUS,
            ("How many different", 2),
            ("What is the rank", 1),
            ("What is the IP", "10.0.0.1"),
            ("What is the port", 29500),
            ("How many GPU", 8),
        ],
        {"num_processes": 8, "num_machines": 2},
    ),
    "two machines of two networks": (
        [
            GPUS,
            ("How many different", 2),
            ("What is the rank", 0),
            ("What is the IP", "10.0.0.1"),
            ("What is the port", 29500),
            ("How many GPU", 8),
            ("Are all the machines", False),
            ("What rendezvous", "c10d"),
        ],
        {"options": ("--rdzv_backend", "c10d")},
    ),
}


@pytest.fixture
def accelerate_config(tmp_path, monkeypatch):
    """Answers the questions of `accelerate config`, by Enter where nothing else is said, and gives the file that it writes."""

    def write(answers):
        def answer(question, convert=None, default=None, **_):
            said = [value for begins, value in answers if question.startswith(begins)]
            return said[0] if said else default

        def choose(question, options=(), convert=None, default=0):
            if said := [value for begins, value in answers if question.startswith(begins)]:
                return wizard.DistributedType(said[0]) if "type of machine" in question else said[0]
            return convert(default) if convert else default

        monkeypatch.setattr(wizard, "_ask_field", answer)
        monkeypatch.setattr(wizard, "_ask_options", choose)
        for there in ("is_fp8_available", "is_transformer_engine_available", "is_deepspeed_available"):
            monkeypatch.setattr(wizard, there, lambda: True)
        path = tmp_path / "default_config.yaml"
        wizard.get_cluster_input().to_yaml_file(str(path))
        return path

    return write


@pytest.mark.parametrize(("answers", "expected"), WRITTEN.values(), ids=WRITTEN)
def test_a_file_as_accelerate_config_writes_it_is_taken_and_started_by_the_launcher_of_several_processes(
    accelerate_config, answers, expected
):
    path = accelerate_config(answers)
    read = read_cluster(str(path))
    assert {name: getattr(read, name) for name in expected} == expected
    args = launched(path)
    assert args.multi_gpu or args.use_fsdp
    assert args.num_processes == read.num_processes
    assert args.gpu_ids == "all"


@pytest.mark.parametrize(
    ("answers", "keys"),
    [
        (
            [
                GPUS,
                FOUR,
                ("Do you want to use FullyShardedDataParallel", True),
                ("What should be your FSDP version", 2),
            ],
            ["fsdp_cpu_ram_efficient_loading"],
        ),
        (
            [
                GPUS,
                FOUR,
                ("Do you want to use FullyShardedDataParallel", True),
                ("What should be your FSDP version", 1),
            ],
            ["fsdp_version is 1", "write 2"],
        ),
        ([GPUS, FOUR, ("Do you want to use DeepSpeed", True)], ["'DEEPSPEED'", "MULTI_GPU", "deepspeed_config"]),
        ([("Which type of machine", "XLA")], ["'XLA'", "MULTI_GPU"]),
        ([CPUS, ("How many processes", 2), ("Do you want accelerate to launch mpirun", True)], ["mpirun_config"]),
    ],
)
def test_what_this_trainer_does_not_do_is_refused_by_name_though_accelerate_config_writes_it(
    accelerate_config, answers, keys
):
    text = "\n".join(problems_of(accelerate_config(answers)))
    assert [key for key in keys if key not in text] == []


@pytest.mark.parametrize("written", ["NO", "'NO'"])
def test_a_bare_no_is_the_text_no_to_the_launcher_too(tmp_path, written):
    path = tmp_path / "one.yaml"
    path.write_text(
        f"distributed_type: {written}\nmixed_precision: no\nnum_processes: 1\nuse_cpu: true\ndynamo_config: {{dynamo_backend: no}}\n"
    )
    read, args = read_cluster(str(path)), launched(path)
    assert (read.num_processes, read.precision, read.compiler) == (1, "no", "no")
    assert args.multi_gpu
    assert args.num_processes == 1
    assert args.main_process_port == 0
    assert args.dynamo_backend == "no"


def test_one_process_need_not_be_counted(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text("distributed_type: 'NO'\nmixed_precision: bf16\n")
    assert read_cluster(str(path)).num_processes == launched(path).num_processes == 1


def test_the_compiler_is_found_under_every_name_that_accelerate_takes(tmp_path):
    path = tmp_path / "one.yaml"
    for said in ("dynamo_config: {dynamo_backend: EAGER}", "dynamo_config: {backend: EAGER}", "dynamo_backend: EAGER"):
        path.write_text(f"distributed_type: MULTI_GPU\nnum_processes: 1\nmixed_precision: bf16\n{said}\n")
        assert read_cluster(str(path)).compiler == launched(path).dynamo_backend.lower() == "eager"


# What is refused

REFUSED = [
    ({"foo_bar": 1}, "foo_bar"),
    ({"gradient_accumulation_steps": 4}, "global_batch"),
    ({"seed": 3}, "the recipe has seed"),
    ({"main_process_port": 99999}, "main_process_port is 99999"),
    ({"main_process_port": "29500"}, "main_process_port is '29500'"),
    ({"main_process_port": 0, "num_machines": 2, "main_process_ip": "a"}, "main_process_port is 0"),
    ({"main_process_ip": "10.0.0.1"}, "main_process_ip is '10.0.0.1'"),
    ({"machine_rank": 1}, "machine_rank is 1"),
    ({"use_cpu": "false"}, "use_cpu is 'false'"),
    ({"debug": 1}, "debug is 1"),
    ({"gpu_ids": "0", "use_cpu": False}, "gpu_ids is '0'"),
    ({"gpu_ids": "0,0", "use_cpu": False}, "gpu_ids is '0,0'"),
    ({"gpu_ids": "0,1"}, "gpu_ids is '0,1'"),
    ({"enable_cpu_affinity": True}, "enable_cpu_affinity is True"),
    ({"rdzv_backend": "c10d"}, "rdzv_backend is 'c10d'"),
    ({"main_training_function": "train"}, "main_training_function is 'train'"),
    ({"compute_environment": "AMAZON_SAGEMAKER", "image_uri": "x"}, "compute_environment is 'AMAZON_SAGEMAKER'"),
    ({"parallelism_config": {"parallelism_config_tp_size": 2}}, "parallelism_config is"),
    ({"deepspeed_config": {"zero_stage": 3}}, "deepspeed_config is"),
    ({"fsdp_config": {"fsdp_version": 2}}, "fsdp_config is"),
    ({"downcast_bf16": True}, "downcast_bf16 is True"),
    ({"tpu_env": ["A=1"]}, "tpu_env is"),
    ({"fp16": True}, "fp16 is True"),
    ({"fp8_config": {1: 2}}, "fp8_config.1"),
    ({"dynamo_config": {False: 2}}, "dynamo_config.False"),
    ({"fp8_config": "TE"}, "fp8_config is 'TE'"),
    ({"fp8_config": {"margin": 2}}, "fp8_config.margin"),
    (
        {"dynamo_config": {"dynamo_backend": "INDUKTOR"}},
        "dynamo_config.dynamo_backend is 'INDUKTOR'; did you mean 'INDUCTOR'",
    ),
    ({"dynamo_config": {"dynamo_mod": "default"}}, "dynamo_config.dynamo_mod"),
    ({"dynamo_config": {"dynamo_use_dynamic": "no"}}, "dynamo_config.dynamo_use_dynamic is 'no'"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=[" ".join(changes) for changes, _ in REFUSED])
def test_a_key_that_is_unknown_or_asks_for_what_nobody_honours_is_refused_by_name(cluster, changes, words):
    (problem,) = problems_of(cluster(**changes))
    assert words in problem


def test_a_dry_run_refuses_it_with_exit_code_2_and_the_line(cluster):
    path = cluster(zz_unknown=1)
    said = trainer("launch", path, "shakespeare", "--dry-run")
    assert said.code == 2
    assert "zz_unknown" in said.err
    assert f"{path}:5" in said.err


WRONG_WORDS = [
    ("num_processes: 2\nnum_processes: 1", ["num_processes", "a second time"]),
    (
        "num_processes: 2\ndynamo_config:\n  dynamo_mode: default\n  dynamo_mode: max-autotune",
        ["dynamo_config.dynamo_mode", "a second time"],
    ),
    ("num_processes: 2\n1: 2", ["unknown key 1"]),
    ("num_processes: 010", ["num_processes", "010", "8 (octal)", "10"]),
    ("num_processes: yes", ["num_processes", "yes", "true"]),
    ("num_processes: 2\nmain_process_port: 1:30", ["main_process_port", "1:30", "90 (base 60)"]),
    ("num_processes: 2\ngpu_ids: 01", ["gpu_ids", "01", "'01'"]),
]


@pytest.mark.parametrize(("lines", "words"), WRONG_WORDS)
def test_a_key_set_twice_and_a_word_with_two_readings_are_refused(tmp_path, lines, words):
    path = tmp_path / "mine.yaml"
    path.write_text(f"distributed_type: MULTI_GPU\nmixed_precision: bf16\n{lines}\n")
    (problem,) = problems_of(path)
    assert [word for word in words if word not in problem] == []


def test_merge_keys_are_read_as_accelerate_reads_them(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump({"distributed_type": "MULTI_GPU", "num_processes": 2}) + "<<: {mixed_precision: bf16}\n"
    )
    assert read_cluster(str(path)).precision == "bf16"


# A sharded model

FSDP = {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}}


def options_of_launcher(prefix):
    return {
        name.removeprefix(prefix)
        for name in vars(launch_command_parser().parse_args(["trainer"]))
        if name.startswith(prefix)
    }


def test_the_keys_of_a_sharded_model_are_those_that_accelerate_reads():
    assert options_of_launcher("fsdp_") | {"ignored_modules"} == FSDP_KEYS.keys()
    assert options_of_launcher("parallelism_config_") == {*PARALLEL_SIZES, "dp_shard_size", *OF_A_SIZE}


@pytest.mark.parametrize("name", ["8gpu_fsdp2_bf16", "cpu_fsdp2_2proc"])
def test_a_shipped_cluster_file_that_shards_says_to_accelerate_all_that_it_says(name, monkeypatch):
    monkeypatch.setattr(launch, "is_port_in_use", lambda port: False)
    cluster = read_cluster(name)
    args, content = launched(cluster.path), yaml.safe_load(cluster.path.read_text())
    assert cluster.is_sharded
    assert args.use_fsdp
    assert not args.multi_gpu
    assert args.num_processes == content["num_processes"] == cluster.num_processes
    assert {key: getattr(args, key) for key in content["fsdp_config"]} == content["fsdp_config"]
    passed_on = launch.prepare_multi_gpu_env(args)
    assert passed_on["ACCELERATE_USE_FSDP"] == "true"
    assert passed_on["FSDP_VERSION"] == "2"
    for key, value in content["fsdp_config"].items():
        assert passed_on[key.upper()].lower() == str(value).lower()
    loaded = ClusterConfig.from_yaml_file(str(cluster.path))
    assert str(loaded.distributed_type.value) == "FSDP"
    assert loaded.fsdp_config == content["fsdp_config"]


HONOURED = [
    {"fsdp_reshard_after_forward": False},
    {"fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer"},
    {"reshard_after_forward": True, "auto_wrap_policy": "transformer_based_wrap"},
    {"fsdp_offload_params": False, "fsdp_activation_checkpointing": False, "fsdp_min_num_params": 0},
]


@pytest.mark.parametrize("section", HONOURED, ids=str)
def test_what_fsdp_config_may_say_is_taken(cluster, section):
    assert read_cluster(cluster(**{**FSDP, "fsdp_config": {"fsdp_version": 2, **section}})).num_processes == 2


REFUSED_OF_FSDP = [
    ({"fsdp_config": {}}, "fsdp_config.fsdp_version is not there"),
    ({"fsdp_config": {"fsdp_version": 1}}, "fsdp_version is 1"),
    *(
        ({"fsdp_config": {"fsdp_version": 2, key: value}}, f"{key} is {value!r}")
        for key, value in {
            "fsdp_reshard_after_forward": "FULL_SHARD",
            "fsdp_auto_wrap_policy": "NO_WRAP",
            "fsdp_transformer_layer_cls_to_wrap": "",
            "fsdp_state_dict_type": "FULL_STATE_DICT",
            "fsdp_cpu_ram_efficient_loading": True,
            "fsdp_activation_checkpointing": True,
            "fsdp_activation_checkpointing_offload": True,
            "fsdp_offload_params": True,
            "fsdp_min_num_params": 1000,
            "fsdp_ignored_modules": "lm_head",
            "fsdp_sharding_strategy": "FULL_SHARD",
            "fsdp_backward_prefetch": "BACKWARD_PRE",
            "fsdp_forward_prefetch": True,
            "fsdp_use_orig_params": True,
            "fsdp_sync_module_states": True,
        }.items()
    ),
    ({"fsdp_config": {"fsdp_version": 2, "fsdp_reshard": True}}, "fsdp_reshard is unknown; did you mean"),
    ({"fsdp_config": "2"}, "fsdp_config is '2'"),
    *(
        ({"parallelism_config": {f"parallelism_config_{name}": 2}}, f"parallelism_config_{name} is 2")
        for name in PARALLEL_SIZES
    ),
    ({"parallelism_config": {"parallelism_config_dp_shard_size": 3}}, "parallelism_config_dp_shard_size is 3"),
    ({"parallelism_config": {"parallelism_config_pp_size": 2}}, "parallelism_config_pp_size is unknown"),
    ({"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, "dynamo_use_regional_compilation is not true"),
    ({"mixed_precision": "fp16"}, "mixed_precision is 'fp16'"),
    ({"mixed_precision": "fp8"}, "mixed_precision is 'fp8'"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED_OF_FSDP, ids=[words for _, words in REFUSED_OF_FSDP])
def test_what_a_sharded_model_does_not_get_is_refused_by_name(cluster, changes, words):
    problems = problems_of(cluster(**{**FSDP, **changes}))
    assert any(words in problem for problem in problems), problems
    assert len(problems) == (2 if changes.get("fsdp_config") == "2" else 1)


def test_sizes_that_ask_for_nothing_are_taken(cluster):
    sizes = {f"parallelism_config_{name}": 1 for name in PARALLEL_SIZES} | {"parallelism_config_dp_shard_size": 2}
    assert read_cluster(cluster(**FSDP, parallelism_config=sizes)).num_processes == 2
