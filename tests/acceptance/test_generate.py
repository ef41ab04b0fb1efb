"""`trainer generate` on a small run that is finished: what it prints, to a terminal, a pipe and a program, and how it ends."""

import contextlib
import errno
import io
import json
from unittest import mock

import pytest

from tests.commands import trainer
from tests.launching import train, write_recipe
from tests.messages import line_of, says
from tests.small_checkpoints import flip
from trainer import files
from trainer.cli import main
from trainer.streams import Unheard


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a project whose one run, `tiny`, is finished."""
    folder = tmp_path_factory.mktemp("project")
    train(write_recipe(folder))
    with mock.patch.object(files, "project_folder", lambda: folder):
        yield folder


def said(*words):
    """What a command prints."""
    done = trainer(*map(str, words))
    assert done.code == 0, done
    return done.out


def test_generate_writes_the_same_text_for_the_same_seed(finished):
    words = ("generate", "tiny", "--prompt", "Enter", "--temperature", "2", "--top-k", "0")
    first = said(*words, "--seed", "1")
    assert first.startswith("Enter")
    assert first == said(*words, "--seed", "1")
    assert first != said(*words, "--seed", "2")


def test_at_temperature_0_the_seed_does_not_count(finished):
    words = ("generate", "tiny", "--prompt", "Enter", "--temperature")
    assert said(*words, "0", "--seed", "1") == said(*words, "0", "--seed", "2") == said(*words, "1e-45")
    assert said(*words, "1e6").startswith("Enter")


def test_generate_never_takes_an_id_of_the_padding(finished):
    from trainer.evaluation.generate import generate

    taken = []
    with mock.patch(
        "trainer.generation.texts.generate",
        side_effect=lambda *args, **kwargs: taken.extend(generate(*args, **kwargs)),
    ):
        said("generate", "tiny", "--temperature", "9", "--top-k", "0", "--num-samples", "30")
    tokens = [token for written in taken for token in written.tokens]
    assert len(tokens) > 300 and max(tokens) <= 256, "one in five rows of the head is padding"


def test_many_prompts_are_continued_as_each_would_be_alone_and_shown_in_order(finished, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Exit"}\n{"prompt": "a\\nb"}\n')
    words = ("--temperature", "2", "--seed", "5")
    together = said("generate", "tiny", "--prompt", "Enter", "--prompts-file", tmp_path / "prompts.jsonl", *words)
    alone = [said("generate", "tiny", "--prompt", prompt, *words) for prompt in ("Enter", "Exit", "a\nb")]
    assert together == "\n".join(f"==> {number} of 3 <==\n{text}" for number, text in enumerate(alone, start=1))
    lines = said("generate", "tiny", "--prompt", "Enter", "--num-samples", "2", "--json", *words).splitlines()
    texts = [json.loads(line) for line in lines]
    assert texts[0]["prompt"] + texts[0]["text"] + "\n" == alone[0]
    assert texts[1]["text"] != texts[0]["text"]
    assert [text["sample"] for text in texts] == [0, 1]
    assert {text["ended_by"] for text in texts} <= {
        "sequence_length",
        "end_of_text",
    }


def test_generate_reads_what_is_piped_into_it_and_says_how_fast_and_why_it_ended(finished, tmp_path):
    (tmp_path / "prompt").write_text("Enter\n")
    words = ("generate", "tiny", "--temperature", "0")
    with open(tmp_path / "prompt") as piped, mock.patch("sys.stdin", piped):
        done = trainer(*words)
    assert done.out == said(*words, "--prompt", "Enter")
    line_of(done.err, "10 tokens", "tokens/s", "sequences of 16 tokens")


def test_generate_ends_at_a_stop(finished):
    words = ("generate", "tiny", "--prompt", "Enter", "--temperature", "0")
    free = said(*words).removeprefix("Enter").removesuffix("\n")
    assert said(*words, "--stop", free[1:3]) == f"Enter{free[: free.index(free[1:3])]}\n"


class Interrupted(io.StringIO):
    """Standard output at which somebody presses Ctrl+C, or which nobody reads on, after so many pieces."""

    def __init__(self, after, error):
        super().__init__()
        self.left, self.error = after, error

    def flush(self):
        self.left -= 1
        if self.left == 0:
            raise self.error


def test_ctrl_c_ends_generate_with_what_was_written(finished):
    whole = said("generate", "tiny", "--prompt", "Enter", "--temperature", "0")
    out, err = Interrupted(4, KeyboardInterrupt), io.StringIO()
    with mock.patch("sys.argv", ["trainer", "generate", "tiny", "--prompt", "Enter", "--temperature", "0"]):
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 130
    says(err.getvalue(), "interrupted")
    written = out.getvalue()
    assert written.endswith("\n")
    assert whole.startswith(written[:-1])
    assert len("Enter") < len(written) < len(whole)


def test_generate_ends_quietly_when_nobody_reads_on(finished):
    out, err = Interrupted(3, Unheard(BrokenPipeError(errno.EPIPE, "Broken pipe"))), io.StringIO()
    with mock.patch("sys.argv", ["trainer", "generate", "tiny", "--prompt", "Enter"]):
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 141
    assert "error:" not in err.getvalue()
    assert "Traceback" not in err.getvalue()


def test_a_damaged_newest_checkpoint_is_told_with_the_step_that_is_taken_and_refused_where_it_was_named(
    finished, tmp_path
):
    weights = finished / "checkpoints/tiny/step-00000024/model.safetensors"
    flip(weights, 2000)
    try:
        done = trainer("generate", "tiny", "--prompt", "a", "--max-new-tokens", "2", "--json")
        (text,) = map(json.loads, done.out.splitlines())
        assert done.code == 0
        assert text["step"] == 20
        assert list(text["passed_over"]) == ["step-00000024"]
        assert "step-00000024" in done.err
        assert "step 20" in done.err
        for number, (word, code) in enumerate((("latest", 0), ("24", 2))):
            done = trainer("export", "tiny", "--out", str(tmp_path / str(number)), "--checkpoint", word)
            assert (done.code, (tmp_path / str(number)).exists()) == (code, code == 0)
            assert "step-00000024" in done.err
        assert "--checkpoint 20" in done.err
    finally:
        flip(weights, 2000)
