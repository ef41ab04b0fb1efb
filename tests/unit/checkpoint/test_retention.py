import math

from tests.small_checkpoints import manifest_of
from trainer.checkpoint.retention import Policy, best_first, tiers


def test_the_lowest_validation_loss_is_best_and_of_equal_ones_the_older():
    manifests = [
        manifest_of(1, val_loss=2.0),
        manifest_of(2),
        manifest_of(3, val_loss=1.0),
        manifest_of(4, val_loss=1.0),
    ]
    assert [m.step for m in best_first(manifests)] == [3, 4, 1]


def test_a_validation_loss_that_is_no_number_is_never_best():
    manifests = [
        manifest_of(1, val_loss=math.nan),
        manifest_of(2, val_loss=3.0),
        manifest_of(3, val_loss=math.nan),
        manifest_of(4, val_loss=1.0),
    ]
    assert [m.step for m in best_first(manifests)] == [4, 2]


def test_the_newest_and_the_best_are_kept_and_the_others_go():
    manifests = [manifest_of(step, val_loss=abs(step - 2)) for step in range(1, 7)]
    kept = tiers(manifests, Policy(keep_last=2, keep_best=1))
    assert kept == {6: ["latest", "last"], 5: ["last"], 4: [], 3: [], 2: ["best"], 1: []}


def test_the_newest_is_kept_whatever_the_policy_says():
    assert tiers([manifest_of(1), manifest_of(2)], Policy(0, 0)) == {2: ["latest"], 1: []}


def test_a_final_checkpoint_says_that_it_is():
    assert tiers([manifest_of(1, reason="final"), manifest_of(2, reason="interrupt")], Policy(2, 0)) == {
        2: ["latest", "last", "interrupt"], 1: ["last"],
    }  # fmt: skip


def test_nothing_is_kept_of_nothing():
    assert tiers([], Policy(1, 1)) == {}
