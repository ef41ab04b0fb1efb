import pytest
from torch.distributed import DistBackendError

from tests.messages import says
from trainer.ending import ranks
from trainer.ending.ranks import (
    broken_connections_explained,
    leave_failure,
    read_failure,
    said_by_lower_rank,
    sweep_failures,
    withdraw_failure,
)
from trainer.errors import RankLostError

GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:48816: Connection reset by peer. This is "
    "typically caused by a remote worker hanging"
)


@pytest.fixture
def become(monkeypatch):
    """Makes this process a rank of a group of three that met at a port."""
    monkeypatch.setattr(ranks, "PATIENCE_SECONDS", 0.1)

    def be(rank, port=1234, world_size=3):
        for name, value in {"RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "here", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))

    return be


def lost(folder, text=GLOO, kind=RuntimeError):
    with pytest.raises(RankLostError) as caught, broken_connections_explained(folder):
        raise kind(text)
    return caught.value


def test_a_broken_connection_has_the_reason_of_the_rank_that_broke_it(tmp_path, become):
    become(2)
    leave_failure(tmp_path / "run", "refused", "a bad shard")
    become(0)
    error = lost(tmp_path / "run")
    assert (str(error), error.outcome, error.was_said) == ("rank 2: a bad shard", "refused", True)
    error = lost(tmp_path / "run", "NCCL communicator was aborted", DistBackendError)
    assert str(error) == "rank 2: a bad shard"


def test_a_rank_that_is_gone_without_a_word_is_told_as_what_is_known(tmp_path, become):
    become(0)
    error = lost(tmp_path)
    says(error, "Read error [127.0.0.1]:48816: Connection reset by peer")
    assert (error.outcome, error.was_said) == ("failed", False)
    says(error, "start it again")


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not match"), DistBackendError("NCCL: Duplicate GPU detected"), ValueError("gloo")]
)
def test_an_error_that_is_no_lost_rank_stays_what_it_is(tmp_path, become, error):
    become(0)
    with pytest.raises(type(error)) as caught, broken_connections_explained(tmp_path):
        raise error
    assert caught.value is error


def test_the_words_of_another_launch_are_not_taken_and_are_swept_at_the_start(tmp_path, become):
    become(1, port=1)
    leave_failure(tmp_path, "failed", "long ago")
    become(2, port=2)
    leave_failure(tmp_path, "failed", "just now")
    (tmp_path / ".failed-rank-7").write_text("{half")
    become(0, port=2)
    assert str(lost(tmp_path)) == "rank 2: just now"
    sweep_failures(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".failed-rank-2"]
    assert read_failure(tmp_path, 7) is None


def test_words_of_an_earlier_launch_that_met_at_the_same_port_are_removed_before_the_ranks_meet(tmp_path, become):
    for rank in (1, 2):
        become(rank)
        leave_failure(tmp_path, "failed", "long ago")
    withdraw_failure(tmp_path)  # where nobody waits for rank 0, each removes its own
    assert [path.name for path in tmp_path.iterdir()] == [".failed-rank-1"]
    become(0)
    sweep_failures(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".failed-rank-1"], (
        "it may be of a quicker rank of this launch"
    )
    sweep_failures(tmp_path, others_wait=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("others_wait", [True, False])
def test_the_first_rank_removes_all_where_the_others_wait_for_it(tmp_path, become, monkeypatch, others_wait):
    from trainer import session

    become(1)
    leave_failure(tmp_path, "failed", "long ago")
    become(0)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", str(others_wait))
    session._take(tmp_path).close()
    assert (tmp_path / ".failed-rank-1").exists() is not others_wait


def test_what_all_ranks_find_wrong_the_first_of_them_says(tmp_path, become):
    become(1)
    leave_failure(tmp_path, "failed", "the same")
    assert not said_by_lower_rank(tmp_path)
    become(2)
    leave_failure(tmp_path, "failed", "the same")
    assert said_by_lower_rank(tmp_path)
    become(0)
    assert not said_by_lower_rank(tmp_path)


def test_a_rank_that_is_alone_leaves_nothing(tmp_path, become):
    become(0, world_size=1)
    leave_failure(tmp_path / "run", "failed", "a bad shard")
    assert not (tmp_path / "run").exists()
