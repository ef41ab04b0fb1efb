import json
import math

from trainer.metrics.tags import KEYS, LAYOUT, MEANINGS, charts_without, drawn, guide


def test_a_step_is_drawn_by_its_tags_and_what_is_no_number_is_not():
    record = {"step": 3, "tokens": 96, "loss": 2.5, "lr": 0.1, "data_digest": "ab", "replay_key": "cd", "time/data_seconds": 0.25, "other": 7}
    assert drawn(record) == {"data/tokens": 96.0, "loss/train": 2.5, "optim/lr": 0.1, "time/data_seconds": 0.25}


def test_what_an_evaluation_found_is_drawn_under_its_own_group():
    record = {"step": 3, "tokens": 96, "val_loss": 2.5, "bits_per_byte": 1.5, "play/acc": 0.5, "seconds": 4.0}
    assert drawn(record) == {"loss/validation": 2.5, "loss/validation_bits_per_byte": 1.5, "evaluation/play/acc": 0.5}


def test_a_loss_that_was_no_number_is_drawn_as_one():
    values = drawn(json.loads('{"step": 1, "loss": null, "grad_norm": null}'))
    assert values.keys() == {"loss/train", "optim/grad_norm"} and all(map(math.isnan, values.values()))


def test_every_plain_key_has_a_meaning_and_the_guide_tells_it():
    assert set(KEYS.values()) <= MEANINGS.keys()
    table = guide(MEANINGS, {"own/probe": ("widgets", "how many there are")})
    assert "| `loss/train` | nats a token |" in table and "| `own/probe` | widgets | how many there are |" in table


def test_a_chart_that_nothing_is_drawn_in_is_found():
    assert charts_without({"loss/train"}) != [] and "training loss (nats a token)" not in charts_without({"loss/train"})
    assert len(charts_without(set())) == sum(len(charts) for charts in LAYOUT.values())
