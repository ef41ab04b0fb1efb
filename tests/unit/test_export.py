"""An exported folder opens with transformers alone: the same logits to the last bit, the same ids as tiktoken."""

import base64
import json
import lzma
import os
from pathlib import Path

import pytest
import tiktoken
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file, save_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import trainer
from tests.messages import refuses, says
from tests.small_checkpoints import CONFIG, manifest_of
from tests.unit.model.tiny import SHAPES, tiny_config, tiny_model
from trainer.checkpoint.format.manifest import to_json
from trainer.errors import CheckpointError, ConfigError, TrainerError
from trainer.export import export, export_checkpoint
from trainer.model.portable import fields_of_transformers_4, fit_positions
from trainer.model.tokenizer_files import TokenizerFacts, build_tokenizer, byte_letters, recover_merges

GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
END = "<|endoftext|>"
TEXTS = [
    "ROMEO:\nBut, soft! what light through yonder window breaks?\n\n\tIt is the east,  and Juliet is the sun.   \n",
    "It's 1,234.5 don't  we'll they've I'M\r\n  x\u00a0y   \n\n\n z",
    "na\u00efve caf\u00e9 \u4f60\u597d\u4e16\u754c \U0001f600\U0001f468\u200d\U0001f469 \u0661\u0662 \x00\x7f",
    "",
    " ",
    "   \n   ",
    "a" * 200,
]


def embedded_ranks(name):
    path = Path(trainer.__file__).parent / "data" / "embedded" / f"{name}.tiktoken.xz"
    lines = lzma.decompress(path.read_bytes()).splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}


def facts_of(name):
    ranks = {bytes([byte]): byte for byte in range(256)} if name == "bytes" else embedded_ranks(name)
    end = max(ranks.values()) + 1
    return TokenizerFacts(ranks=ranks, pattern=GPT2_PATTERN, eot_token=END, eot_id=end, vocab_size=end + 1)


def tiktoken_of(facts):
    return tiktoken.Encoding(
        "test", pat_str=facts.pattern, mergeable_ranks=dict(facts.ranks), special_tokens={END: facts.eot_id}
    )


def stored(model, folder, tied=True):
    """A checkpoint's weights as Accelerate writes them: a tied parameter once."""
    path = folder / "model.safetensors"
    save_model(model, str(path)) if tied else save_file(model.state_dict(), str(path))
    return path


@pytest.mark.parametrize("shape", SHAPES)
def test_the_exported_logits_are_the_trained_models_to_the_last_bit(shape, tmp_path):
    facts = facts_of("bytes")
    model = tiny_model(shape, facts.vocab_size).eval()
    export(
        tmp_path / "out",
        model_config=model.config.to_dict(),
        weights=stored(model, tmp_path),
        tokenizer=facts,
        facts={"steps": 12, "validation loss": 3.5},
    )
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = torch.randint(257, (2, 20), generator=torch.Generator().manual_seed(0))
    assert torch.equal(opened(tokens).logits, model(tokens).logits[..., :257])
    tied = opened.get_input_embeddings().weight is opened.get_output_embeddings().weight
    assert tied == model.config.tie_word_embeddings
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation.get("suppress_tokens") is None
    assert generation["eos_token_id"] == 256
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer(TEXTS[0])["input_ids"] == list(TEXTS[0].encode())
    assert tokenizer.eos_token_id == 256
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| steps | 12 |" in card
    assert "| validation loss | 3.5 |" in card
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
@pytest.mark.parametrize("name", ["gpt2", "shakespeare", "bytes"])
def test_ids_from_auto_tokenizer_are_tiktokens(name, shape, tmp_path):
    facts = facts_of(name)
    config = tiny_config(shape, facts.vocab_size)
    with torch.random.fork_rng():
        weights = stored(AutoModelForCausalLM.from_config(config), tmp_path)
    export(tmp_path / "out", model_config=config, weights=weights, tokenizer=facts)
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path / "out"), tiktoken_of(facts)
    assert ours.eos_token == END
    assert ours.convert_tokens_to_ids(END) == facts.eot_id
    assert len(ours) == facts.vocab_size
    for text in TEXTS:
        ids = ours(text)["input_ids"]
        assert ids == theirs.encode_ordinary(text)
        assert ours.decode(ids) == text
    assert ours(f"a{END}b")["input_ids"][1] == facts.eot_id


@pytest.fixture(scope="module")
def both_gpt2():
    facts = facts_of("gpt2")
    return build_tokenizer(facts), tiktoken_of(facts)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60) | st.text(alphabet=" \n\t\r'aZ1.\u00e9\u3000", max_size=60))
def test_any_text_has_tiktokens_ids(both_gpt2, text):
    ours, theirs = both_gpt2
    if END not in text:
        assert ours.encode(text).ids == theirs.encode_ordinary(text)


def test_every_gpt2_token_but_the_bytes_has_a_merge_of_two_earlier_tokens():
    ranks = embedded_ranks("gpt2")
    merges = recover_merges(ranks)
    assert [ranks[a + b] for a, b in merges] == list(range(256, len(ranks)))
    assert all(max(ranks[a], ranks[b]) < ranks[a + b] for a, b in merges)


def test_byte_letters_are_256_different_printable_ones():
    letters = byte_letters()
    assert len(set(letters)) == 256
    assert letters[ord("A")] == "A"
    assert letters[ord(" ")] == "\u0120"


def test_a_dtype_is_honoured_and_an_unknown_one_refused(tmp_path):
    model = tiny_model("llama")
    weights = stored(model, tmp_path)
    arguments = {"model_config": model.config, "weights": weights, "tokenizer": None, "vocab_size": 257}
    out = export(tmp_path / "out", **arguments, dtype="bfloat16")
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
    assert not (out / "tokenizer.json").exists()
    with pytest.raises(ConfigError, match="float32, bfloat16"):
        export(tmp_path / "other", **arguments, dtype="int4")


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), None), (float("-inf"), None), (1e6, "float16")])
def test_weights_that_are_not_finite_or_would_not_be_are_refused_by_name_and_leave_nothing(tmp_path, value, dtype):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight[1] = value
    arguments = {"model_config": model.config, "weights": stored(model, tmp_path), "tokenizer": None, "vocab_size": 257}
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        export(tmp_path / "out", **arguments, dtype=dtype)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_an_export_replaces_nothing(tmp_path):
    model = tiny_model("llama")
    weights, out = stored(model, tmp_path), tmp_path / "out"
    out.mkdir()
    export(out, model_config=model.config, weights=weights, tokenizer=None)
    with refuses(TrainerError, out):
        export(out, model_config=model.config, weights=weights, tokenizer=None)
    (tmp_path / "file").write_text("x")
    with refuses(TrainerError, tmp_path / "file"):
        export(tmp_path / "file", model_config=model.config, weights=weights, tokenizer=None)


def test_weights_that_are_not_the_configs_are_refused_and_leave_nothing_behind(tmp_path):
    model = tiny_model("llama")
    state = dict(model.state_dict())
    cases = {
        "missing ['lm_head.weight']": {k: v for k, v in state.items() if k != "lm_head.weight"},
        "stranger": state | {"stranger": torch.zeros(2)},
        "lm_head.weight": state | {"lm_head.weight": torch.zeros(7, 32)},
    }
    for word, content in cases.items():
        save_file(content, str(tmp_path / "model.safetensors"))
        with refuses(CheckpointError, word):
            export(tmp_path / "out", model_config=model.config, weights=tmp_path / "model.safetensors", tokenizer=None)
        assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_no_weights_and_an_unknown_model_type_are_told(tmp_path):
    with refuses(CheckpointError, tmp_path / "none"):
        export(tmp_path / "out", model_config=tiny_config("llama"), weights=tmp_path / "none", tokenizer=None)
    with pytest.raises(ConfigError, match="model_type 'nope'"):
        export(tmp_path / "out", model_config={"model_type": "nope"}, weights=tmp_path / "none", tokenizer=None)


def test_an_export_that_fails_half_way_leaves_nothing_behind(tmp_path, monkeypatch):
    model = tiny_model("llama")
    weights = stored(model, tmp_path)
    monkeypatch.setattr("trainer.export.model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(tmp_path / "out", model_config=model.config, weights=weights, tokenizer=None)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


# What other programs read of it


def exported(tmp_path, shape, **arguments):
    """An export of a tiny model and the model itself."""
    facts = facts_of("bytes")
    model = tiny_model(shape, facts.vocab_size).eval()
    tmp_path.mkdir(exist_ok=True)
    out = export(
        tmp_path / "out",
        model_config=model.config.to_dict(),
        weights=stored(model, tmp_path),
        tokenizer=facts,
        **arguments,
    )
    return out, model


def written(out, name):
    return json.loads((out / name).read_text())


def test_the_written_tokenizer_is_one_that_transformers_4_and_5_open(tmp_path):
    """The contract that was tried by hand in both: this class, no key of version 5 alone, an id to pad with."""
    out, _ = exported(tmp_path, "llama")
    config = written(out, "tokenizer_config.json")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "backend" not in config
    assert config["pad_token"] == config["eos_token"] == config["bos_token"] == END
    assert AutoTokenizer.from_pretrained(out)(["a", "bcd"], padding=True)["input_ids"] == [
        [256, 256, 97],
        [98, 99, 100],
    ]
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    assert config["padding_side"] == "left"
    assert written(out, "tokenizer.json")["added_tokens"][0]["id"] == 256


@pytest.mark.parametrize(
    ("rope", "fields"),
    [
        ({"rope_type": "default", "rope_theta": 500.0}, {"rope_theta": 500.0}),
        (
            {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
            {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
        (
            {"rope_type": "default", "rope_theta": 9.0, "partial_rotary_factor": 0.5},
            {"rope_theta": 9.0, "partial_rotary_factor": 0.5},
        ),
        (
            {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1.0},
                "full_attention": {"rope_type": "default", "rope_theta": 2.0},
            },
            {"rope_theta": 2.0, "rope_local_base_freq": 1.0},
        ),
        (None, {}),
    ],
)
def test_rotary_positions_are_written_in_the_words_of_transformers_4_too(rope, fields):
    assert fields_of_transformers_4({"rope_parameters": rope}) == fields


def test_the_config_of_an_export_has_them_beside_those_of_transformers_5(tmp_path):
    config = written(exported(tmp_path, "llama")[0], "config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert "rope_theta" not in written(exported(tmp_path / "second", "gpt2")[0], "config.json")


def test_the_type_of_the_weights_is_written_in_the_word_of_earlier_versions_too(tmp_path):
    out, _ = exported(tmp_path, "llama", dtype="bf16")
    assert written(out, "config.json")["torch_dtype"] == written(out, "config.json")["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype is torch.bfloat16


@pytest.mark.parametrize("shape", ["gpt2", "llama-tied"])
def test_config_and_tokenizer_state_the_sequence_length_that_was_trained_on(shape, tmp_path):
    out, model = exported(tmp_path, shape, sequence_length=24)
    config = AutoConfig.from_pretrained(out)
    assert config.max_position_embeddings == written(out, "tokenizer_config.json")["model_max_length"] == 24
    tokens = torch.randint(257, (2, 24), generator=torch.Generator().manual_seed(0))
    opened = AutoModelForCausalLM.from_pretrained(out).eval()
    assert torch.equal(opened(tokens).logits, model(tokens).logits[..., :257])


def test_positions_that_the_outputs_depend_on_stay(tmp_path):
    model = tiny_model("llama", 257, rope_parameters={"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0})
    before = model.config.max_position_embeddings
    fit_positions(model, 24)
    assert model.config.max_position_embeddings == before > 24
    fit_positions(shorter := tiny_model("llama"), 4096)
    assert shorter.config.max_position_embeddings == before


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_the_files_of_an_export_have_the_mode_that_the_umask_gives(umask, tmp_path):
    earlier = os.umask(umask)
    try:
        out, _ = exported(tmp_path, "llama")
    finally:
        os.umask(earlier)
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize("name", ["bf16", "bfloat16"])
def test_a_dtype_has_a_short_name_and_torchs(name, tmp_path):
    out, _ = exported(tmp_path, "llama", dtype=name)
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert "| precision | bfloat16 |" in (out / "README.md").read_text()


def test_the_card_of_a_checkpoint_says_how_it_was_trained(tmp_path, monkeypatch):
    """Data, length, batch, optimizer, rate, evaluations; those of another step are left out, and the licence is a field."""
    monkeypatch.setattr("trainer.files.project_folder", lambda: tmp_path)
    run, folder = tmp_path / "runs" / "run", tmp_path / "step-00000010"
    run.mkdir(parents=True)
    folder.mkdir()
    model = tiny_model("llama")
    stored(model, folder)
    (folder / "config.yaml").write_text(
        CONFIG + "optimizer: {name: adamw, lr: 0.0006}\nschedule: {name: cosine, warmup_steps: 7}\n"
    )
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step, "val_loss": 3.0, "words/acc": step / 100}) + "\n" for step in (9, 10, 11))
    )
    (run / "evaluations.jsonl").write_text(
        "".join(
            json.dumps({"step": step, "task": "piqa", "acc": step / 40, "chance": 0.5}) + "\n" for step in (9, 10, 11)
        )
    )
    with open(run / "evaluations.jsonl", "a") as file:
        file.write(
            json.dumps(
                {
                    "step": 10,
                    "task": "validation_loss",
                    "data": "other",
                    "loss": 2.5,
                    "bits_per_byte": 1.25,
                    "num_tokens": 640,
                }
            )
            + "\n"
        )
    manifest = manifest_of(
        10,
        model=json.loads(model.config.to_json_string(use_diff=False)),
        vocab_size=257,
        val_loss=3.0,
        identity={"sequence_length": 8},
    )
    (folder / "manifest.json").write_text(to_json(manifest))
    card = (export_checkpoint(folder, tmp_path / "out", license="mit") / "README.md").read_text()
    assert "\nlicense: mit\n" in card.split("---")[1]
    rows = dict(
        line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ") and line != "| | |"
    )
    assert rows["data"] == "shakespeare"
    assert rows["sequence length"].startswith("8 ")
    assert rows["batch"].startswith("4 ")
    assert "adamw" in rows["optimizer"]
    assert rows["learning rate"].startswith("0.0006 ")
    assert "cosine, 7 " in rows["learning rate"]
    assert rows["words"] == "acc 0.100"
    assert rows["piqa"] == "acc 0.250, chance 0.500"
    assert rows["validation loss"].startswith("3.0000")
    says(rows["loss on other"], "2.5000", "1.2500", "640")
    assert written(tmp_path / "out", "config.json")["max_position_embeddings"] == 8
