"""A whole run on a disk that has no locks: NFS mounted nolock, Lustre without flock, some of FUSE."""

import errno
import fcntl

from tests.launching import Started, outcome, wait_for_step, write_recipe
from tests.messages import line_of


def without_locks() -> None:
    """What such a disk answers, in every rank."""

    def flock(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    fcntl.flock = flock


def test_a_second_run_of_one_name_is_refused_and_one_that_was_killed_is_continued(tmp_path):
    recipe = write_recipe(tmp_path)
    first = Started(recipe, ["max_steps=100000"], 1, without_locks)
    wait_for_step(recipe, 12, first)
    second = Started(recipe, [], 1, without_locks)
    assert second.wait() == 2
    line_of(second.text(), "another process", "tiny")
    assert first.running
    first.kill()
    third = Started(recipe, ["max_steps=100000"], 1, without_locks)
    wait_for_step(recipe, 40, third)
    line_of(third.text(), "No locks available")
    assert "resumed from" in third.text()
    third.kill()
    assert outcome(recipe)["outcome"] == "running"
