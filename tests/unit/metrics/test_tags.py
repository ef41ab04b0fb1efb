import json
import math
import re

from tests.messages import says
from trainer.metrics.tags import KEYS, MEANINGS, MFU, VALIDATION, drawn, guide, layout


def test_a_step_is_drawn_by_its_tags_and_what_is_no_number_is_not():
    record = {
        "step": 3,
        "tokens": 96,
        "loss": 2.5,
        "lr": 0.1,
        "data_digest": "ab",
        "replay_key": "cd",
        "time/data_seconds": 0.25,
        "other": 7,
    }
    assert drawn(record) == {"data/tokens": 96.0, "Loss/train": 2.5, "optim/lr": 0.1, "time/data_seconds": 0.25}


def test_what_an_evaluation_found_is_drawn_under_its_own_group():
    record = {"step": 3, "tokens": 96, "val_loss": 2.5, "bits_per_byte": 1.5, "play/acc": 0.5, "seconds": 4.0}
    assert drawn(record) == {"Loss/validation": 2.5, "Loss/validation_bits_per_byte": 1.5, "evaluation/play/acc": 0.5}


def test_a_loss_that_was_no_number_is_drawn_as_one():
    values = drawn(json.loads('{"step": 1, "loss": null, "grad_norm": null}'))
    assert values.keys() == {"Loss/train", "optim/grad_norm"}
    assert all(map(math.isnan, values.values()))


def test_every_plain_key_has_a_meaning_and_the_guide_tells_it():
    assert set(KEYS.values()) <= MEANINGS.keys()
    table = guide(MEANINGS, {"own/probe": ("widgets", "how many there are")})
    says(table, "`Loss/train` | nats")
    assert "| `own/probe` | widgets | how many there are |" in table


def test_a_chart_that_a_run_cannot_fill_is_left_out():
    titles = [title for charts in layout({VALIDATION}).values() for title in charts]
    assert any("validation loss" in title for title in titles)
    assert "MFU (0..1)" not in titles
    assert "GPU power (W)" not in titles
    assert "MFU (0..1)" in layout({MFU})["3 How fast, how far?"]


def test_a_pattern_draws_whole_tags_only():
    ((_, patterns),) = [
        chart
        for title, chart in layout({VALIDATION})["1 Is it learning?"].items()
        if title.startswith("validation loss")
    ]
    for tag in ("Loss/validation", "loss/validation"):
        assert any(re.search(pattern, tag) for pattern in patterns)
        assert not any(re.search(pattern, f"{tag}_bits_per_byte") for pattern in patterns)
