"""The map of layers in trainer/__init__.py, held against what the modules really import and call."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trainer
from tests.small_checkpoints import commit

PACKAGE = Path(trainer.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60

LAYERS = {
    int(number): names.split() for number, names in re.findall(r"^ +layer (\d+) +(.+)$", trainer.__doc__, re.MULTILINE)
}
READS = {("evaluation", "data")}
"""What one package reads through another of its layer."""
LAYER_OF = {name: number for number, names in LAYERS.items() for name in names}


def dotted(path: Path) -> str:
    """The module's name inside the package: config/load.py -> config.load, config/__init__.py -> config, __init__.py -> ``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in FILES}


def imported(path: Path, *, at_module_level: bool = False) -> set[str]:
    """Every name a file imports, with what it imports from it: `from a import b` gives a and a.b."""
    tree = TREES[path]
    nodes = _unconditional(tree.body) if at_module_level else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def _unconditional(body: list[ast.stmt]):
    """Statements that run when the module is imported: not those of functions, nor those for a type checker."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            continue
        yield node
        for part in ("body", "orelse", "finalbody"):
            yield from _unconditional(getattr(node, part, []))
        for handler in getattr(node, "handlers", []):
            yield from _unconditional(handler.body)


def own_imports(module: str) -> set[str]:
    """The modules of this package that a module imports."""
    names = {name.removeprefix("trainer.") for name in imported(MODULES[module]) if name.startswith("trainer.")}
    return {name for name in names if name in MODULES and name != module}


def users_of(*packages: str) -> set[str]:
    """The files that import one of these packages, or a part of it."""
    return {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if any(name == package or name.startswith(f"{package}.") for name in imported(path) for package in packages)
    }


def callers_of(*names: str) -> set[str]:
    """The files that use one of these names: `os.rename` as written or imported from its module, `save_state` as any attribute."""
    found = set()
    for path in FILES:
        used = {
            ast.unparse(node) for node in ast.walk(TREES[path]) if isinstance(node, (ast.Attribute, ast.Name))
        } | imported(path)
        if any(text == name or ("." not in name and text.endswith(f".{name}")) for text in used for name in names):
            found.add(str(path.relative_to(PACKAGE)))
    return found


def calls(name: str) -> set[str]:
    """The files that call a plain name."""
    return {
        str(path.relative_to(PACKAGE))
        for path in FILES
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (name, f"accelerate.{name}")
    }


def inside(files: set[str], *places: str) -> bool:
    return all(
        any(file == place or file.startswith(place if place.endswith("/") else f"{place}/") for place in places)
        for file in files
    )


# The map


def test_the_map_has_six_layers():
    assert sorted(LAYERS) == [1, 2, 3, 4, 5, 6] and len(LAYER_OF) == sum(map(len, LAYERS.values()))


def test_every_module_is_in_the_map_and_every_name_of_the_map_is_a_module():
    assert {module.split(".")[0] for module in MODULES if module} == LAYER_OF.keys()


@pytest.mark.parametrize("module", [module for module in MODULES if module])
def test_imports_only_go_down(module):
    package = module.split(".")[0]
    layer = LAYER_OF[package]
    for other in own_imports(module):
        target = other.split(".")[0]
        if target == package:
            continue
        names = LAYERS[layer]
        to_the_right = layer == max(LAYERS) and target in names and names.index(target) > names.index(package)
        is_allowed = LAYER_OF[target] < layer or to_the_right or (package, target) in READS
        assert is_allowed, f"{module} (layer {layer}) imports {other} (layer {LAYER_OF[target]})"


CHECKPOINT_LAYERS = [["format", "ranks"], ["context"], ["resume"], ["mirror", "inspect"], ["commit"], ["save"]]
"""The packages and files of checkpoint/, from the ground."""


def test_the_packages_of_checkpoint_import_only_downwards():
    layer_of = {name: number for number, names in enumerate(CHECKPOINT_LAYERS) for name in names}
    modules = [module for module in MODULES if module.startswith("checkpoint.")]
    assert {module.split(".")[1] for module in modules} == layer_of.keys()
    for module in modules:
        for other in own_imports(module):
            if other.startswith("checkpoint."):
                own, target = module.split(".")[1], other.split(".")[1]
                assert own == target or layer_of[target] < layer_of[own], f"{module} imports {other}"


def test_the_package_itself_imports_nothing():
    assert imported(MODULES[""]) == set()


def test_no_import_is_a_circle():
    arrows = {module: own_imports(module) for module in MODULES}
    done: set[str] = set()

    def visit(module, way):
        assert module not in way, " -> ".join([*way, module])
        if module not in done:
            for other in arrows[module]:
                visit(other, [*way, module])
            done.add(module)

    for module in MODULES:
        visit(module, [])


# The ground, and what must answer at once


def test_what_packages_agree_on_is_plain_data():
    tree = TREES[MODULES["contracts"]]
    assert not [
        node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.Lambda, ast.AsyncFunctionDef))
    ]


@pytest.mark.parametrize("module", LAYERS[1])
def test_the_ground_imports_the_standard_library_only(module):
    assert {name.split(".")[0] for name in imported(MODULES[module])} <= sys.stdlib_module_names


ANSWERS_AT_ONCE = [
    "__main__",
    "cli",
    "config",
    "journal",
    "report",
    "history",
    "runs",
    "state",
    "launcher",
    "launcher_child",
    "tools",
]


@pytest.mark.parametrize("module", [module for module in MODULES if module.split(".")[0] in ANSWERS_AT_ONCE])
def test_what_answers_at_once_imports_nothing_heavy(module):
    roots = {name.split(".")[0] for name in imported(MODULES[module], at_module_level=True)}
    heavy = {"torch", "accelerate", "transformers", "numpy", "datasets", "pyarrow"}
    assert roots & heavy <= ({"numpy"} if module.startswith("tools.compare.") else set()), "it calculates on curves"


def test_commands_that_only_look_never_load_torch(store):
    for step in (5, 10):
        commit(store, step)
    run, copy = str(store.folder), str(store.folder.parent / "copy")
    script = f"""
import sys
from trainer.cli import app
for words in (["--help"], ["train", "--help"], ["selftest", "--help"], ["doctor", "--help"], ["bench", "precision", "--help"], ["compare", "--help"], ["train", "shakespeare", "--show-config"],
              ["plan", "--help"], ["plan", "4gpu_bf16", "llama-1b"], ["plan", "cpu", "shakespeare", "--json"],
              ["checkpoints", "ls", {run!r}], ["checkpoints", "ls", {run!r}, "--json"], ["checkpoints", "verify", {run!r}],
              ["checkpoints", "show", {run!r}], ["checkpoints", "diff", {run!r}, "5", "10"], ["checkpoints", "pin", {run!r}, "5"],
              ["checkpoints", "prune", {run!r}, "--dry-run"], ["checkpoints", "copy", {run!r}, "5", {copy!r}],
              ["checkpoints", "fetch", {copy!r}], ["checkpoints", "fetch", {copy!r}, "latest", "--to", {copy + "-2"!r}],
              ["checkpoints", "unpin", {run!r}, "5"], ["checkpoints", "prune", {run!r}]):
    try:
        app(words, standalone_mode=False)
    except SystemExit as end:
        assert not end.code, (words, end.code)
    heavy = {{"torch", "accelerate", "transformers", "datasets", "pyarrow"}} & sys.modules.keys()
    assert not heavy, (words, heavy)
import trainer.report, trainer.history.page, trainer.history.screen, trainer.tools.selftest.conduct, trainer.tools.bench.conduct, trainer.tools.bench.survey
import trainer.precision.measured, trainer.tools.compare.judge, trainer.tools.compare.page
assert "torch" not in sys.modules
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_what_the_writer_needs_of_a_checkpoint_needs_nothing_heavy():
    names = ("mirror.places", "resume.crash_loops", "save.preflight", "save.schedule", "save.writer")
    modules = [f"trainer.checkpoint.{name}" for name in names]
    script = f"import sys, {', '.join(modules)}; print(*({{'torch', 'accelerate', 'fsspec', 'pydantic'}} & sys.modules.keys()))"
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == ""


# One owner for each dependency


@pytest.mark.parametrize(
    ("packages", "owners"),
    [
        (["tiktoken"], ["data/byte_pairs.py"]),
        (["datasets"], ["data/sources.py"]),
        (["pyarrow"], ["data/sources.py", "data/byte_pairs.py"]),
        (["transformers"], ["model/", "export.py", "hub.py", "data/hugging_face.py", "data/exported_tokenizer.py"]),
        (["huggingface_hub"], ["hub.py", "model/resolve.py"]),
        (["transformer_engine"], ["precision/"]),
        (["tensorboard", "torch.utils.tensorboard", "accelerate.tracking"], ["metrics/"]),
        (["yaml"], ["config/"]),
        (["pydantic"], ["config/"]),
        (["typer"], ["cli/"]),
        (["rich"], ["cli/", "metrics/console.py"]),
        (["xxhash"], ["checkpoint/", "data/", "run/", "plugins.py", "model/digest.py"]),
        (
            ["subprocess"],
            [
                "launcher.py",
                "alerts/targets.py",
                "safety/hang.py",
                "tools/trial/tracked.py",
                "checkpoint/save/writer_client.py",
                "tools/doctor/ask.py",
                "tools/doctor/install.py",
            ],
        ),
        (["fsspec"], ["checkpoint/mirror/places.py"]),
        (["plotly"], ["plots.py"]),
    ],
)
def test_each_dependency_has_one_owner(packages, owners):
    assert inside(users_of(*packages), *owners), users_of(*packages)


@pytest.mark.parametrize(
    ("names", "owners"),
    [
        (["save_state", "load_state", "register_for_checkpointing"], ["checkpoint/"]),
        (
            [
                "os.rename",
                "os.renames",
                "os.replace",
                "os.fsync",
                "os.fdatasync",
                "os.truncate",
                "shutil.rmtree",
                "shutil.move",
            ],
            ["files.py"],
        ),
        (["pickle.load", "pickle.loads"], []),
    ],
)
def test_each_delicate_function_has_one_owner(names, owners):
    assert inside(callers_of(*names), *owners), callers_of(*names)


def test_a_tilde_is_read_by_what_leaves_one_of_nobody_as_it_is():
    """os.path.expanduser, so that the path is told as missing; Path.expanduser ends in a traceback."""
    texts = [ast.unparse(node) for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert {text for text in texts if text.endswith(".expanduser")} == {"os.path.expanduser"}


def test_the_clock_on_the_wall_which_may_be_set_is_asked_for_moments_and_what_lies_between_two_is_told_by_another():
    """Who names a moment has it: an event of TensorBoard, the end of a run on the bar, a checkpoint's age since another machine made it, and the check of that clock."""
    doors = ["metrics/event_files.py", "metrics/board.py", "metrics/console.py"]
    doors += ["checkpoint/inspect/listing.py", "checkpoint/mirror/fetch.py", "host_checks.py"]
    assert inside(callers_of("time.time", "time.time_ns"), *doors), callers_of("time.time", "time.time_ns")


def test_only_launch_makes_an_accelerator():
    assert calls("Accelerator") == {"launch/accelerator.py"}


def test_only_streams_prints_which_knows_what_a_print_that_fails_means():
    assert calls("print") == {"streams.py"}
    assert callers_of("sys.stdout", "sys.stderr") <= {
        "streams.py",
        "cli/guide.py",
        "cli/model.py",
        "metrics/console.py",
    }


def test_a_pickle_is_only_read_where_nothing_in_it_is_executed():
    loads = [
        ast.unparse(node)
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert loads and all("weights_only=True" in call for call in loads), loads


# Size and names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_and_its_functions_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(TREES[path]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno + 1 <= MAX_FUNCTION_LINES, node.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_plain_ascii_and_says_what_it_is(path):
    assert path.read_text(encoding="utf-8").isascii()
    assert ast.get_docstring(TREES[path]) or not TREES[path].body, "a module begins by saying what it is"


def test_no_module_has_a_name_that_says_nothing():
    empty = {"util", "utils", "helper", "helpers", "common", "manager", "managers", "misc", "base", "core"}
    assert [module for module in MODULES if set(module.split(".")) & empty] == []


def test_nothing_is_caught_by_a_bare_except():
    bare = [
        path.name
        for path in FILES
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert bare == []


COMMANDS = "train|prepare|tokenizer|checkpoints|runs|launch|finish|eval|export|generate|report|status|tensorboard|doctor|selftest|bench|plan|install-fp8|compare|guide"
PRINTED_COMMAND = re.compile(
    rf": trainer (?:{COMMANDS})\b|`trainer (?:{COMMANDS}) [\w-]|\./launch\.sh|\.venv/bin|^trainer (?:{COMMANDS})$"
)


def test_a_command_is_printed_by_the_one_function_that_knows_how_it_is_typed_here():
    """`trainer X` is no command in a checkout, and `./launch.sh X` none beside one: config/folders.py knows."""
    found = set()
    for path in FILES:
        documentation = {
            ast.get_docstring(node, clean=False)
            for node in ast.walk(TREES[path])
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        }
        loose = {
            node.value.value
            for node in ast.walk(TREES[path])
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        words = [
            node for node in ast.walk(TREES[path]) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        found |= {
            f"{path.relative_to(PACKAGE)}:{node.lineno}"
            for node in words
            if node.value not in documentation | loose and PRINTED_COMMAND.search(node.value)
        }
    assert {place for place in found if not place.startswith("config/folders.py:")} == set()
