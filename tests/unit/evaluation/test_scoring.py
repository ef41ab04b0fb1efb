"""Scores are those of the harness, and to the last bit the same for any number of ranks and threads."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.messages import refuses
from tests.unit.model.tiny import tiny_model
from trainer.data.assets import embedded_documents
from trainer.data.tokenizer import load_tokenizer
from trainer.errors import DataError
from trainer.evaluation.items import item
from trainer.evaluation.next_lines import next_line_items
from trainer.evaluation.scoring import Row, cut_into_groups, encode_task, group_tokens, score_rows
from trainer.evaluation.tasks import Task
from trainer.model.scores import token_scores

CPU = torch.device("cpu")
BYTES, GPT2 = load_tokenizer("bytes"), load_tokenizer("gpt2")


def encoded(*rows, tokenizer=GPT2, num_positions=1000):
    items = tuple(item(f"line {number}", row) for number, row in enumerate(rows, start=1))
    return encode_task(Task("t", items), tokenizer.encode, start_id=tokenizer.start_id, num_positions=num_positions)


def ids(text):
    return tuple(GPT2.encode(text))


def word(context, continuation):
    return {"context": context, "continuation": continuation}


# Tokens


def test_context_and_continuation_are_encoded_as_one_text():
    (row,) = encoded(word("The sky is", "blue.")).rows
    assert row == Row(ids("The sky is blue."), len(ids(" blue.")))


@pytest.mark.parametrize("space", [" ", "\n", "  \n "])
def test_space_at_the_end_of_a_context_is_scored_with_the_continuation(space):
    (row,) = encoded(word(f"The sky is{space}", "blue")).rows
    assert row.ids == ids(f"The sky is{space} blue")
    assert row.num_scored == len(row.ids) - len(ids("The sky is"))


@pytest.mark.parametrize("context", ["", " ", "\n"])
def test_an_end_of_text_stands_for_an_empty_context_and_nowhere_else(context):
    (row,) = encoded(word(context, "blue")).rows
    assert row.ids == (GPT2.eot_id, *ids(f"{context} blue"))
    assert row.num_scored == len(row.ids) - 1
    assert GPT2.eot_id not in encoded(word("The", "sky")).rows[0].ids


@pytest.mark.parametrize("context", ["", "The sky is"])
def test_bos_stands_before_every_text_where_the_tokenizer_puts_it_there(context):
    task = Task("t", (item("line 1", word(context, "blue")),))
    (row,) = encode_task(task, GPT2.encode, start_id=7, begins_always=True, num_positions=20).rows
    assert row.ids == (7, *ids(f"{context} blue"))


def test_a_text_that_is_too_long_loses_its_front():
    whole = ids("one two three four five")
    (row,) = encoded(word("one two three four", "five"), num_positions=3).rows
    assert row == Row(whole[-4:], 1), "of four tokens the model reads three"


def test_a_continuation_longer_than_the_model_is_refused_with_its_line():
    with refuses(DataError, "line 2", "' b c d e'", "4 tokens", "1 to 3"):
        encoded(word("a", "b"), word("a", "b c d e"), num_positions=3)


def test_equal_texts_are_one_row_so_that_a_tie_is_one():
    task = encoded(
        {"query": "a", "choices": ["b", "c", "b"], "gold": 2}, {"query": "a", "choices": ["c", "d"], "gold": 0}
    )
    assert task.row_of_pair == ((0, 1, 0), (1, 2))
    assert len(task.rows) == 3


# Groups


@given(st.lists(st.integers(1, 60), max_size=80), st.integers(1, 200))
def test_every_row_is_in_one_group_that_is_not_too_large(lengths, max_tokens):
    groups = cut_into_groups(lengths, max_tokens)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[row] for row in group) <= max_tokens
    in_order = [lengths[row] for group in groups for row in group]
    assert in_order == sorted(lengths, reverse=True)


def test_a_gpu_takes_larger_groups_than_a_core():
    assert group_tokens("cuda") > group_tokens("cpu")


# Scores


@pytest.fixture(scope="module")
def task():
    return encode_task(
        Task("lines", next_line_items(embedded_documents("shakespeare", "validation"))[:6]),
        BYTES.encode,
        start_id=BYTES.start_id,
        num_positions=2048,
    )


@pytest.fixture(scope="module")
def model():
    """Wide where a product's inner sum is parted among threads, so that their number shows in the last bits."""
    return tiny_model("llama", hidden_size=64, intermediate_size=2048, max_position_embeddings=2048).eval()


def scores_of(model, rows, world_size=1, num_threads=None):
    """What every rank ends with; they must not differ."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads or before)
    try:
        parts: list[torch.Tensor] = []

        def score(inputs, positions, wanted):
            return token_scores(model, inputs, positions, wanted)

        def of_rank(rank, reduce):
            return score_rows(rows, score, device=CPU, rank=rank, world_size=world_size, reduce=reduce)

        for rank in range(world_size):
            of_rank(rank, lambda totals: (parts.append(totals.clone()), totals)[1])
        assert torch.get_num_threads() == (num_threads or before)
        results = [of_rank(rank, lambda totals: sum(parts)) for rank in range(world_size)]
    finally:
        torch.set_num_threads(before)
    assert all(result == results[0] for result in results)
    return results[0]


def test_scores_are_those_of_the_whole_logits(model, task):
    scores = scores_of(model, task.rows)
    for row, score in list(zip(task.rows, scores, strict=True))[::3]:
        tokens = torch.tensor([row.ids])
        with torch.no_grad():
            logits = model(tokens[:, :-1]).logits[0, -row.num_scored :, :257].log_softmax(-1)
        wanted = tokens[0, -row.num_scored :]
        assert score.log_likelihood == pytest.approx(float(logits.gather(1, wanted[:, None]).sum()), rel=1e-5)
        assert score.is_greedy == bool((logits.argmax(-1) == wanted).all())


@pytest.mark.parametrize(("world_size", "num_threads"), [(2, 1), (3, 1), (1, 1), (2, 2)])
def test_ranks_and_threads_change_no_bit(model, task, world_size, num_threads):
    assert scores_of(model, task.rows, world_size, num_threads) == scores_of(model, task.rows, 1, 2)


def test_more_ranks_than_groups_leave_some_without_work(model, task):
    few = task.rows[:2]
    assert scores_of(model, few, 5) == scores_of(model, few)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_that_hold_parts_of_a_model_score_as_often_as_each_other_and_one_group_at_a_time(model, task, world_size):
    calls: list[int] = []
    threads = set()

    def score(inputs, positions, wanted):
        calls[-1] += 1
        threads.add(threading.get_ident())
        return token_scores(model, inputs, positions, wanted)

    totals = []
    for rank in range(world_size):
        calls.append(0)
        place = {"device": CPU, "rank": rank, "world_size": world_size}
        score_rows(task.rows, score, **place, in_step=True, reduce=lambda part: totals.append(part) or part)
    assert len(set(calls)) == 1
    assert threads == {threading.get_ident()}
    summed = sum(totals).tolist()
    assert summed == [[each.log_likelihood, float(each.is_greedy)] for each in scores_of(model, task.rows)]


def test_a_word_that_is_the_likeliest_is_greedy_and_another_is_not(model):
    context = BYTES.encode("To be, or")
    with torch.no_grad():
        likeliest = int(model(torch.tensor([context])).logits[0, -1, :257].argmax())
    rows = [Row((*context, likeliest), 1), Row((*context, (likeliest + 1) % 257), 1)]
    assert [score.is_greedy for score in scores_of(model, rows)] == [True, False]


def test_on_a_cpu_the_cores_work_side_by_side_and_progress_is_told(task):
    threads, heard = set(), []

    def score(inputs, positions, wanted):
        threads.add((threading.get_ident(), torch.get_num_threads()))
        return torch.zeros(len(wanted)), torch.ones(len(wanted), dtype=torch.bool)

    scores = score_rows(
        task.rows, score, device=CPU, rank=0, world_size=1, reduce=lambda totals: totals, progress=heard.append
    )
    assert all(score.is_greedy and score.log_likelihood == 0.0 for score in scores)
    assert threading.get_ident() not in {thread for thread, _ in threads}
    assert {number for _, number in threads} == {1}
    assert heard == sorted(heard)
    assert heard[-1] == 1.0


def test_the_number_of_threads_comes_back_after_an_error(task):
    def score(inputs, positions, wanted):
        raise RuntimeError("no memory")

    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="no memory"):
        score_rows(task.rows, score, device=CPU, rank=0, world_size=1, reduce=lambda totals: totals)
    assert torch.get_num_threads() == before
