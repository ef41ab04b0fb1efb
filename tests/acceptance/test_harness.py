"""Item by item, our decisions are those that lm-evaluation-harness makes of the same items through the exported folder."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_model
from transformers import AutoConfig

from tests.launching import checkpoint, train, write_recipe
from tests.sources import write_source, write_tokenizer
from trainer.data import bpe
from trainer.data.assets import embedded_documents, read_asset
from trainer.data.prepare import prepare
from trainer.data.sources import rows
from trainer.data.tokenizer import END_OF_TEXT, load_tokenizer
from trainer.evaluation.next_lines import next_line_items
from trainer.evaluation.task_evaluator import TaskEvaluator
from trainer.evaluation.tasks import open_tasks
from trainer.export import export
from trainer.model.build import build_model
from trainer.model.resolve import resolve
from trainer.model.scores import token_scores
from trainer.model.tokenizer_files import TokenizerFacts

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install -e '.[test]'")

NUM_ITEMS = 120
NUM_TOKENS = 3000
"""Of the shakespeare vocabulary, so that with the end of text the model's rows are padded, as with GPT-2's vocabulary."""

CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{query}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
WORD = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{context}}",
    "doc_to_target": "{{' ' + continuation}}",
    "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    ranks = bpe.parse_tiktoken(read_asset("shakespeare.tiktoken.xz"), "shakespeare")
    path = tmp_path_factory.mktemp("vocabulary") / "small.tiktoken"
    path.write_bytes(bpe.tiktoken_lines({token: rank for token, rank in ranks.items() if rank < NUM_TOKENS}))
    return load_tokenizer(str(path))


@pytest.fixture(scope="module")
def model(tokenizer):
    """Random weights, but large ones: no two tokens are nearly as likely, and padding would have a part if it were let."""
    fields = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 48,
    }
    config = resolve(None, fields, vocab_size=tokenizer.vocab_size, sequence_length=48, eot_id=tokenizer.eot_id)
    model = build_model(config, vocab_size=tokenizer.vocab_size, seed=3, device="cpu")
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(10)
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory, model, tokenizer):
    """Two tasks from the embedded play: next lines, and last words of which every second is what the model would write."""
    folder = tmp_path_factory.mktemp("sets")
    items = next_line_items(embedded_documents("shakespeare", "validation"))[:NUM_ITEMS]
    choices = [
        # A query that ends in space, or that is empty, among the plain ones.
        {
            "query": ("", f"{item.pairs[0][0]}\n", item.pairs[0][0])[min(number % 10, 2)],
            "choices": [line[1:] for _, line in item.pairs],
            "gold": item.gold,
        }
        for number, item in enumerate(items)
    ]
    words = []
    for number, item in enumerate(items):
        context, _, word = "".join(item.pairs[item.gold]).rpartition(" ")
        words.append(
            {"context": context, "continuation": likeliest_word(model, tokenizer, context) if number % 2 else word}
        )
    for name, content in (("lines", choices), ("words", words)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in content))
    return folder


def likeliest_word(model, tokenizer, context):
    """The likeliest token that begins with a space, without it; often the likeliest of all."""
    ids = torch.tensor([tokenizer.encode(context)[-48:]])
    with torch.no_grad():
        logits = model.eval()(ids).logits[0, -1, : tokenizer.vocab_size]
    tokens = (tokenizer.decode([int(token)]) for token in logits.argsort(descending=True))
    return next(token[1:] for token in tokens if token.startswith(" ") and token[1:].isalpha())


def ours(files, model, tokenizer):
    tasks = open_tasks(["lines.jsonl", "words.jsonl"], None, files, rows=rows)
    evaluator = TaskEvaluator(tasks, model, token_scores, tokenizer, Accelerator(cpu=True))
    return tasks, evaluator.decisions(), evaluator.results()


def theirs(files, folder):
    """The harness's results and its samples, by task."""
    from lm_eval.models.huggingface import HFLM

    def task(name, form):
        data = {"data_files": {"test": str(files / f"{name}.jsonl")}, "cache_dir": str(files / "cache")}
        return {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test", **form}

    harness = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=16)
    found = lm_eval.simple_evaluate(
        model=harness, tasks=[task("lines", CHOICE), task("words", WORD)], bootstrap_iters=0, log_samples=True
    )
    samples = {name: sorted(some, key=lambda sample: sample["doc_id"]) for name, some in found["samples"].items()}
    return found["results"], samples


def exported(model, tokenizer, folder):
    """The export of a model begun from random weights."""
    save_model(model, str(folder / "model.safetensors"))
    facts = TokenizerFacts(
        ranks=tokenizer.ranks,
        pattern=tokenizer.pattern,
        eot_token=END_OF_TEXT,
        eot_id=tokenizer.eot_id,
        vocab_size=tokenizer.vocab_size,
    )
    return export(folder / "exported", model_config=model.config, weights=folder / "model.safetensors", tokenizer=facts)


def test_every_decision_is_the_harnesss(files, model, tokenizer, tmp_path: Path):
    right = they_agree(files, model, tokenizer, exported(model, tokenizer, tmp_path))
    assert 0.1 < right < 0.9, "the test wants right words and wrong ones"


@pytest.mark.long
def test_so_is_every_decision_of_a_model_that_began_from_another(files, tokenizer, tmp_path: Path):
    fields = {"vocab_size": tokenizer.vocab_size, "bos_token_id": NUM_TOKENS, "eos_token_id": NUM_TOKENS}
    source = write_source(tmp_path / "source", dtype=torch.float32, max_position_embeddings=48, **fields)
    write_tokenizer(source, tokenizer.source)
    corpus = tmp_path / "corpus"
    prepare(["embedded:shakespeare"], corpus, str(source))
    recipe = write_recipe(
        tmp_path,
        model={"init_from": str(source), "config": {}},
        data={"train": [str(corpus / "corpus_train_*.bin")], "validation": [], "tokenizer": str(source)},
        sequence_length=48,
        max_steps=150,
        optimizer={"lr": 0.01},
    )
    train(recipe)
    own_tokenizer = load_tokenizer(str(source))
    config = AutoConfig.from_pretrained(source)
    trained = build_model(config, vocab_size=tokenizer.vocab_size, seed=1, device="cpu")
    trained.load_state_dict(load_file(checkpoint(recipe, 150) / "model.safetensors"), strict=False)
    they_agree(files, trained, own_tokenizer, recipe.parent / "runs" / "tiny" / "exported")


def they_agree(files, model, tokenizer, folder):
    """Our decisions of a model are theirs through this folder, one by one."""
    tasks, decisions, results = ours(files, model, tokenizer)
    their_results, samples = theirs(files, folder)
    for task, decided, result in zip(tasks, decisions, results, strict=True):
        assert len(samples[task.name]) == len(decided) == NUM_ITEMS
        for item, decision, sample in zip(task.items, decided, samples[task.name], strict=True):
            assert [float(response[0]) for response in sample["filtered_resps"]] == pytest.approx(
                decision.log_likelihoods, rel=1e-5
            )
            assert sample["acc"] == (decision.choice == item.gold), item
            assert task.chance is None or sample["acc_norm"] == (decision.choice_norm == item.gold), item
        assert result.acc == pytest.approx(their_results[task.name]["acc,none"])
    lines, words = results
    assert lines.acc_norm == pytest.approx(their_results["lines"]["acc_norm,none"])
    assert words.perplexity == pytest.approx(their_results["words"]["perplexity,none"], rel=1e-5)
    return words.acc
