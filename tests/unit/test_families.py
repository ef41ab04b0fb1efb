"""Every family, from a random config: transformers' loss, steps, a checkpoint, an exact resume, and an export with the same logits."""

import copy

import pytest
import torch
from torch.optim import AdamW
from transformers import AutoModelForCausalLM

from tests.small_runs import Small
from tests.unit.model.families import EACH, VOCABULARY, family_config, family_model
from trainer.checkpoint.format.store import CheckpointStore
from trainer.config.schema import CheckpointConfig
from trainer.contracts import IGNORED_LABEL
from trainer.evaluation.loss import validation_loss
from trainer.export import export

REAL = VOCABULARY - 5


def batch(seed=3, rows=2, columns=24):
    """Inputs, and the labels of this trainer: the token after each; the last one, which transformers does not ask for, is ignored."""
    tokens = torch.randint(REAL, (rows, columns), generator=torch.Generator().manual_seed(seed))
    return tokens, torch.cat([tokens[:, 1:], torch.full((rows, 1), IGNORED_LABEL)], dim=1)


def plain_model(model):
    """The same weights in transformers' own class."""
    plain = AutoModelForCausalLM.from_config(
        copy.deepcopy(model.config), attn_implementation=model.config._attn_implementation
    )
    plain.load_state_dict(model.state_dict())
    plain.get_input_embeddings().padding_idx = None  # in this trainer's batches nothing is padding
    return plain.train(model.training)


def seeded(work):
    """Dropout draws alike in both."""
    torch.manual_seed(0)
    return work()


@pytest.mark.parametrize("family", EACH)
def test_the_training_loss_and_its_gradients_are_those_of_transformers(family):
    model = family_model(family)
    plain = plain_model(model)
    tokens, labels = batch()
    routed = {} if model.routing is None else {"output_router_logits": True}
    ours = seeded(lambda: model(tokens, labels=labels))
    theirs = seeded(lambda: plain(input_ids=tokens, labels=tokens, **routed)).loss
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert model.head_reason is None
    ours.backward()
    theirs.backward()
    for (name, mine), wanted in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, wanted.grad, rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", EACH)
def test_the_loss_of_an_evaluation_is_the_cross_entropy_alone(family):
    model = family_model(family)
    tokens, labels = batch()
    with torch.no_grad():
        expected = plain_model(model.eval())(input_ids=tokens, labels=tokens).loss
    found = validation_loss(model.train(), [(tokens, labels)], reduce=lambda totals: totals)
    assert found.loss == pytest.approx(float(expected), rel=1e-6)


def small_run(store, family):
    def build():
        model = family_model(family)
        return model, AdamW(model.parameters(), lr=0.01)

    return Small(store, CheckpointConfig(every_steps=3, asynchronous=False), build=build)


def take(run, steps):
    for _ in range(steps):
        tokens, labels = batch(seed=run.state.progress.step)
        run.model(tokens, labels=labels).backward()
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.state.advance(2, tokens.numel())


@pytest.mark.parametrize("family", EACH)
def test_a_run_of_it_resumes_exactly_and_its_export_gives_the_same_logits(family, tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints" / "run")
    run = small_run(store, family)
    take(run, 3)
    run.save()
    tokens, _ = batch()
    with torch.no_grad():
        logits = run.model.eval()(tokens).logits
    run.model.train()
    take(run, 3)

    again = small_run(store, family)
    again.resume()
    take(again, 3)
    assert again.everything() == run.everything()

    out = export(  # without five ids, as if they were padding, and with no more positions than were trained
        tmp_path / "out",
        model_config=family_config(family),
        weights=store.path(3) / "model.safetensors",
        tokenizer=None,
        vocab_size=REAL,
        sequence_length=24,
    )
    assert ("active parameters" in (out / "README.md").read_text()) == (run.model.routing is not None)
    opened = AutoModelForCausalLM.from_pretrained(out, attn_implementation=run.model.config._attn_implementation)
    with torch.no_grad():
        assert torch.equal(opened.eval()(tokens).logits, logits[..., :REAL])
