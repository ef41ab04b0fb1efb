"""A model that begins from another one computes what transformers does, and goes out as it came in, to the bit."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.messages import refuses
from tests.sources import FAMILIES, FAST, VOCAB_SIZE, source_model, write_source
from trainer.errors import ConfigError
from trainer.export import export
from trainer.model.like_source import Origin
from trainer.model.pretrained import load_source, source_config
from trainer.model_files import CONFIG, INDEX
from trainer.pretrained import handed_on, open_source

CPU = torch.device("cpu")
BATCH = torch.randint(VOCAB_SIZE, (3, 24), generator=torch.Generator().manual_seed(5))
ALL = [pytest.param(family, marks=() if family in FAST else pytest.mark.long) for family in FAMILIES]


def load(folder, *, rows=None, sequence_length=16, **overrides):
    """The source in a folder, the model that begins from it, and the digest of its weights."""
    source = open_source(folder, str(folder))
    made = source_config(source, overrides, sequence_length=sequence_length)
    return source, *load_source(source, made.config, rows=rows, seed=3, device=CPU)


def loss(model, batch=BATCH):
    with torch.no_grad():
        return float(model.eval()(batch[:, :-1], labels=batch[:, 1:]))


def loss_of_transformers(folder, batch=BATCH):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return float(model.eval()(batch, labels=batch).loss)


def exported(folder, source, model, out, **options):
    """The export of a model as it was loaded."""
    save_model(model, str(out.parent / "stored.safetensors"))
    origin = Origin(folder, (CONFIG, *handed_on(folder)), source.dtype, source.dtypes)
    fields = json.loads(model.config.to_json_string(use_diff=False))
    return export(
        out,
        model_config=fields,
        weights=out.parent / "stored.safetensors",
        tokenizer=None,
        sequence_length=16,
        origin=origin,
        **options,
    )


def tensors_of(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("family", ALL)
def test_the_loss_is_that_of_transformers_and_what_goes_out_is_what_came_in(family, tmp_path):
    folder = write_source(tmp_path / "source", family)
    source, model, _ = load(folder)
    assert loss(model) == pytest.approx(loss_of_transformers(folder), rel=1e-6)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    out = exported(folder, source, model, tmp_path / "out")
    theirs, ours = tensors_of(folder), tensors_of(out)
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert tensor.dtype == ours[name].dtype and torch.equal(tensor, ours[name]), name
    before, after = (json.loads((each / CONFIG).read_text()) for each in (folder, out))
    unspecific = ("transformers_version", "architectures")
    assert {k: v for k, v in after.items() if k not in unspecific} == {
        k: v for k, v in before.items() if k not in unspecific
    }
    names = handed_on(folder)
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= set(names)
    assert all((folder / name).read_bytes() == (out / name).read_bytes() for name in names)
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(folder).chat_template


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
def test_a_tensor_that_is_stored_in_another_type_goes_out_in_that(tmp_path, sharded):
    folder = tmp_path / "source"
    model = source_model("mamba").to(torch.bfloat16)
    special = "backbone.layers.0.mixer.A_log"
    stored = dict(model.state_dict())
    stored[special] = stored[special].float() + torch.rand_like(stored[special], dtype=torch.float32)
    model.save_pretrained(folder, state_dict=stored, max_shard_size="20KB" if sharded else "1GB")
    assert (folder / INDEX).is_file() is sharded
    source, loaded, _ = load(folder)
    out = exported(folder, source, loaded, tmp_path / "out")
    after = tensors_of(out)
    assert after[special].dtype == torch.float32 and torch.equal(after[special], tensors_of(folder)[special])
    assert {tensor.dtype for name, tensor in after.items() if name != special} == {torch.bfloat16}
    widened = exported(folder, source, loaded, tmp_path / "wide", dtype="fp32")
    assert {tensor.dtype for tensor in tensors_of(widened).values()} == {torch.float32}
    assert json.loads((widened / CONFIG).read_text())["dtype"] == "float32"


def as_older(folder, family):
    """Rewrites the weights in a layout of an earlier version, or with what it stored besides."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if family == "gpt2":
        mask = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        tensors |= {f"h.{block}.attn.bias": mask.clone() for block in range(2)}
    elif family == "llama":
        tensors |= {f"model.layers.{block}.self_attn.rotary_emb.inv_freq": torch.rand(4) for block in range(2)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def test_numbers_of_fp64_are_counted_and_become_fp32(tmp_path):
    folder = write_source(tmp_path / "source", dtype=torch.float64)
    source = open_source(folder, "it")
    tensors = tensors_of(folder)
    assert source.narrowed == sum(tensor.dtype == torch.float64 for tensor in tensors.values()) > 0
    assert source.dtype == "float32" and not source.dtypes
    assert open_source(write_source(tmp_path / "other"), "it").narrowed == 0


@pytest.mark.parametrize(
    ("family", "told"), [("gpt2", "attn.bias"), ("llama", "rotary_emb.inv_freq"), ("mixtral", None)]
)
def test_an_older_layout_loads_as_the_new_one_and_what_means_nothing_is_said_once(family, told, tmp_path, caplog):
    folder = write_source(tmp_path / "source", family)
    _, new, digest = load(folder)
    as_older(folder, family)
    if family == "mixtral":
        assert any(".experts.3.w2." in name for name in tensors_of(folder))
    caplog.set_level("INFO", logger="trainer")
    _, old, digest_of_old = load(folder)
    assert digest == digest_of_old
    assert loss(old) == loss(new) == pytest.approx(loss_of_transformers(folder), rel=1e-6)
    said = [message for message in caplog.messages if told and told in message]
    assert len(said) == (1 if told else 0)


def test_the_digest_is_of_the_weights_and_not_of_their_type(tmp_path):
    digests = []
    for dtype in (torch.bfloat16, torch.float32):
        folder = write_source(tmp_path / "bf16" if dtype == torch.bfloat16 else tmp_path / "fp32", dtype=torch.bfloat16)
        if dtype == torch.float32:
            path = folder / "model.safetensors"
            save_file({name: value.float() for name, value in load_file(path).items()}, path, metadata={"format": "pt"})
        digests.append(load(folder)[2])
    assert digests[0] == digests[1]
    assert load(write_source(tmp_path / "other", vocab_size=258))[2] != digests[0]


def test_who_writes_to_the_source_later_does_not_write_to_the_model(tmp_path):
    folder = write_source(tmp_path / "source", dtype=torch.float32)
    _, model, _ = load(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = folder / "model.safetensors"
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(path.stat().st_size // 2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# What the recipe changes


def test_a_change_that_changes_no_shape_is_a_difference_and_goes_out(tmp_path):
    folder = write_source(tmp_path / "source", max_position_embeddings=64)
    source = open_source(folder, str(folder))
    scaling = {"rope_type": "linear", "factor": 4.0}
    made = source_config(source, {"rope_scaling": scaling, "attention_dropout": 0.1}, sequence_length=128)
    assert made.changed.keys() == {"rope_parameters", "attention_dropout", "max_position_embeddings"}
    assert made.changed["attention_dropout"] == (0.0, 0.1)
    assert made.changed["max_position_embeddings"] == (64, 128)
    model, _ = load_source(source, made.config, seed=0, device=CPU)
    before, after = (
        json.loads((each / CONFIG).read_text()) for each in (folder, exported(folder, source, model, tmp_path / "out"))
    )
    changed = {key for key in before | after if before.get(key) != after.get(key)}
    assert changed == {"rope_parameters", "attention_dropout", "max_position_embeddings"}
    assert AutoConfig.from_pretrained(tmp_path / "out").rope_parameters == made.config.rope_parameters


def test_a_change_goes_out_in_the_words_of_transformers_4_where_the_source_has_them(tmp_path):
    folder = write_source(tmp_path / "source", max_position_embeddings=64)
    fields = json.loads((folder / CONFIG).read_text())
    fields.pop("rope_parameters")
    fields["torch_dtype"] = fields.pop("dtype")
    (folder / CONFIG).write_text(json.dumps({**fields, "rope_theta": 5000.0, "rope_scaling": None}))
    source, model, _ = load(folder, rope_scaling={"rope_type": "linear", "factor": 4.0})
    out = exported(folder, source, model, tmp_path / "out", dtype="fp16")
    after = json.loads((out / CONFIG).read_text())
    assert after["rope_theta"] == 5000.0 and after["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert after["torch_dtype"] == "float16" and "dtype" not in after
    assert AutoConfig.from_pretrained(out).rope_parameters == model.config.rope_parameters
    assert "rope_parameters" not in after


@pytest.mark.parametrize("is_older", [False, True])
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"rope_theta": 9000.0}, {"rope_type": "default", "rope_theta": 9000.0}),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
            {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0}},
            {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rope_theta": 9000.0},
            {"rope_type": "linear", "factor": 4.0, "rope_theta": 9000.0},
        ),
    ],
)
def test_what_a_recipe_says_of_rotary_positions_counts_and_the_rest_stays_the_sources(
    tmp_path, overrides, expected, is_older
):
    folder = write_source(tmp_path / "source", rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    if is_older:
        fields = json.loads((folder / CONFIG).read_text())
        fields.pop("rope_parameters")
        (folder / CONFIG).write_text(json.dumps({**fields, "rope_theta": 5000.0, "rope_scaling": None}))
    made = source_config(open_source(folder, "the source"), overrides, sequence_length=16)
    assert made.config.rope_parameters == expected
    assert made.changed == {"rope_parameters": ({"rope_type": "default", "rope_theta": 5000.0}, expected)}


def test_a_base_of_rotary_positions_that_may_be_of_several_layers_is_refused(tmp_path):
    source = open_source(write_source(tmp_path / "source", "gemma3_text"), "the source")
    with refuses(ConfigError, "model.config.rope_theta", "9000.0", "sliding_attention", "rope_parameters"):
        source_config(source, {"rope_theta": 9000.0}, sequence_length=16)


@pytest.mark.parametrize(
    ("overrides", "sequence_length", "named"),
    [
        ({"hidden_size": 64}, 16, ["hidden_size", "model.embed_tokens.weight", "rope_scaling"]),
        ({"num_hidden_layers": 3}, 16, ["num_hidden_layers", "absent"]),
        ({"model_type": "gpt2"}, 16, ["model.config.model_type", "'gpt2'", "'llama'"]),
        ({"vocab_size": 300}, 16, ["model.config.vocab_size", "model.resize_vocabulary"]),
        ({"max_position_embeddings": 8}, 16, ["max_position_embeddings 8", "sequence_length 16"]),
        ({"hiden_size": 64}, 16, ["model.config.hiden_size", "hidden_size"]),
        ({"hidden_act": 7, "rms_norm_eps": "x"}, 16, ["config.json", "LlamaConfig"]),
        ({"hidden_act": "nope"}, 16, ["config.json", "LlamaForCausalLM", "'nope'"]),
        ({"rope_scaling": {"rope_type": "nope"}}, 16, ["config.json", "LlamaForCausalLM", "'nope'"]),
        ({"num_attention_heads": 0}, 16, ["config.json", "LlamaConfig", "modulo by zero"]),
    ],
)
def test_a_change_that_does_not_fit_the_weights_is_refused(tmp_path, overrides, sequence_length, named):
    source = open_source(write_source(tmp_path / "source"), "the source")
    with refuses(ConfigError, *named):
        source_config(source, overrides, sequence_length=sequence_length)


@pytest.mark.parametrize(("family", "limit"), [("gpt2", 64), ("opt", 64)])
def test_sequences_longer_than_a_table_of_positions_are_refused(tmp_path, family, limit):
    source = open_source(write_source(tmp_path / "source", family), "the source")
    with refuses(ConfigError, f"sequence_length {limit + 1}", limit, "the source"):
        source_config(source, {}, sequence_length=limit + 1)


def test_rows_are_added_near_the_mean_and_the_old_ones_stay(tmp_path):
    folder = write_source(tmp_path / "source", tie_word_embeddings=False)
    torch.manual_seed(1)
    source, model, digest = load(folder, rows=300)
    assert (model.config.vocab_size, model.real_vocab_size) == (300, 300)
    torch.rand(1)
    again = load(folder, rows=300)[1]
    _, before, digest_before = load(folder)
    assert digest != digest_before
    for table in ("model.embed_tokens.weight", "lm_head.weight"):
        old, new = before.state_dict()[table], model.state_dict()[table]
        assert torch.equal(new[:VOCAB_SIZE], old) and torch.equal(new, again.state_dict()[table])
        assert torch.allclose(new[VOCAB_SIZE:], old.mean(0).expand(43, -1), atol=1e-4)
    out = exported(folder, source, model, tmp_path / "out")
    assert json.loads((out / CONFIG).read_text())["vocab_size"] == 300
    assert AutoModelForCausalLM.from_pretrained(out).lm_head.weight.shape[0] == 300


# What cannot be begun from


def damage(folder, what):
    """Makes a good source a bad one."""
    weights, fields = folder / "model.safetensors", json.loads((folder / CONFIG).read_text())
    tensors = load_file(weights)
    match what:
        case "nan":
            tensors["model.norm.weight"][3] = float("nan")
        case "missing key":
            tensors.pop("model.layers.1.mlp.up_proj.weight")
        case "unexpected key":
            tensors["model.layers.0.mlp.extra.weight"] = torch.zeros(3)
        case "mismatch":
            tensors["model.norm.weight"] = torch.zeros(7)
        case "no head":
            tensors.pop("lm_head.weight")
        case "fewer layers":
            fields["num_hidden_layers"] = 1
        case "fp8":
            tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(48, 32).to(torch.float8_e4m3fn)
        case "quantised":
            fields["quantization_config"] = {"quant_method": "gptq", "bits": 4}
        case "unknown type":
            fields |= {"model_type": "nobody_knows", "auto_map": {"AutoModelForCausalLM": "code.Model"}}
        case "no type":
            fields.pop("model_type")
        case "encoder":
            fields = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
        case "images":
            fields = {"model_type": "vit", "architectures": ["ViTForImageClassification"]}
        case "sees all":
            fields = None
    save_file(tensors, weights, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("nan", ["model.norm.weight", "NaN"]),
        ("missing key", ["model.layers.1.mlp.up_proj.weight", "missing"]),
        ("unexpected key", ["model.layers.0.mlp.extra.weight", "no place"]),
        ("mismatch", ["model.norm.weight", "[7]", "[32]"]),
        ("no head", ["lm_head.weight", "no head"]),
        ("fewer layers", ["model.layers.1.mlp.down_proj.weight", "9 tensors", "no place"]),
        ("fp8", ["model.layers.0.mlp.up_proj.weight", "F8_E4M3", "quantised"]),
        ("quantised", ["gptq", "quantised"]),
        ("unknown type", ["'nobody_knows'", "trust_remote_code"]),
        ("no type", ["config.json", "model_type"]),
        ("encoder", ["T5ForConditionalGeneration"]),
        ("images", ["ViTForImageClassification"]),
    ],
)
def test_weights_or_a_config_that_make_no_whole_model_are_refused(tmp_path, what, named):
    folder = write_source(tmp_path / "source", tie_word_embeddings=False)
    damage(folder, what)
    with refuses(ConfigError, "model.init_from", folder, *named):
        load(folder)


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def pickle_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def shard(folder, without=None):
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    if without:
        sorted(folder.glob("model-*.safetensors"))[1].unlink()


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pointer(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")


def header(facts):
    def write(folder):
        text = json.dumps({"lm_head.weight": facts}).encode()
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)

    return write


def lone_index(folder):
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text("{}")


def adapter(folder):
    (folder / "adapter_config.json").write_text("{}")


def gguf(folder):
    empty(folder)
    (folder / "model-q4.gguf").write_bytes(b"GGUF")


@pytest.mark.parametrize(
    ("damaged", "named"),
    [
        (shutil.rmtree, ["no folder", "hf:NAME", "run:NAME"]),
        (empty, ["config.json", "save_pretrained"]),
        (gguf, ["model-q4.gguf", "safetensors"]),
        (pickle_only, ["pytorch_model.bin", "save_pretrained", "safetensors"]),
        (lambda folder: shard(folder, without=1), ["missing", "model-00002-of", INDEX]),
        (cut, ["cut short", "model.safetensors"]),
        (pointer, ["git lfs pull"]),
        (header({"dtype": "F32", "data_offsets": [0, 0]}), ["lm_head.weight", "shape", "again"]),
        (header({"dtype": "F32", "shape": [0], "data_offsets": []}), ["lm_head.weight", "again"]),
        (lone_index, [INDEX, "weight_map"]),
        (lambda folder: (folder / "model.safetensors").unlink(), ["model.safetensors", INDEX]),
        (lambda folder: (folder / CONFIG).write_text("{"), ["config.json", "again"]),
        (adapter, ["adapter_config.json", "merge"]),
    ],
)
def test_a_folder_that_is_not_a_whole_model_is_refused_before_a_tensor_is_read(tmp_path, damaged, named):
    folder = write_source(tmp_path / "source")
    damaged(folder)
    with refuses(ConfigError, "model.init_from", folder, *named):
        open_source(folder, str(folder))


@pytest.mark.parametrize("method", [None, {}, "gptq"])
def test_only_a_quantisation_that_the_config_names_is_refused(tmp_path, method):
    folder = write_source(tmp_path / "source")
    fields = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**fields, "quantization_config": method}))
    if not method:
        assert open_source(folder, "it").dtype == "bfloat16"
        return
    with refuses(ConfigError, "quantised", method):
        open_source(folder, "it")


def test_a_file_is_not_a_folder(tmp_path):
    folder = write_source(tmp_path / "source")
    with refuses(ConfigError, "is a file", "config.json"):
        open_source(folder / CONFIG, "it")


def test_a_sharded_source_loads_as_a_single_file_does(tmp_path):
    folder = write_source(tmp_path / "source")
    digest = load(folder)[2]
    shard(folder)
    assert load(folder)[2] == digest
