"""An event of the journal in words."""

import re

from trainer import journal
from trainer.alerts.kinds import _KINDS
from trainer.history.words import _WORDS, words


def test_every_event_of_which_a_person_is_told_has_words():
    told = {*_KINDS, "stop", "alert_failed"}
    assert told <= _WORDS.keys()
    assert _WORDS.keys() <= set(re.findall(r"^    (\w+)  ", journal.__doc__, re.MULTILINE))


def test_a_start_in_another_precision_than_was_asked_for_says_why():
    start = {"event": "start", "machine": "1 process", "precision": "bf16"}
    assert words(start) == "started: 1 process"
    assert words({**start, "instead_of": "fp8", "because": "no GPU"}).endswith("bf16 instead of fp8, because no GPU")
