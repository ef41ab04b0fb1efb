import math

from tests.small_checkpoints import manifest_of
from trainer.checkpoint.format.retention import (
    UNKEPT,
    Holding,
    Policy,
    best_first,
    least_bytes,
    most_kept,
    policy_of,
    removals,
    shortage,
    tiers,
)
from trainer.config.schema import CheckpointConfig


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
    assert kept == {6: ["latest", "rolling"], 5: ["rolling"], 4: [], 3: [], 2: ["best"], 1: []}


def test_the_newest_is_kept_whatever_the_policy_says():
    assert tiers([manifest_of(1), manifest_of(2)], Policy(0, 0)) == {2: ["latest"], 1: []}


def test_a_final_checkpoint_says_that_it_is():
    assert tiers([manifest_of(1, reason="final"), manifest_of(2, reason="interrupt")], Policy(2, 0)) == {
        2: ["latest", "rolling", "interrupt"],
        1: ["rolling"],
    }


def test_nothing_is_kept_of_nothing():
    assert tiers([], Policy(1, 1)) == {}


def test_losses_on_other_validation_data_do_not_compare():
    old = [manifest_of(1, val_loss=1.0, validation="old"), manifest_of(2, val_loss=2.0, validation="old")]
    new = [manifest_of(3, validation="new"), manifest_of(4, val_loss=9.0, validation="new")]
    assert [m.step for m in best_first(old)] == [1, 2]
    assert [m.step for m in best_first([*old, new[0]])] == [1, 2], "nothing was evaluated on the new data yet"
    assert [m.step for m in best_first([*old, *new])] == [4]


def test_the_best_stays_the_best_when_a_later_one_on_the_same_data_goes():
    manifests = [
        manifest_of(1, val_loss=1.0, validation="b"),
        manifest_of(2, val_loss=0.5, validation="a"),
        manifest_of(3, val_loss=2.0, validation="b"),
        manifest_of(4, validation="b"),
    ]
    assert best_first(manifests)[0].step == 1
    assert best_first([m for m in manifests if m.step != 3])[0].step == 1


def test_one_checkpoint_is_kept_for_several_reasons():
    manifests = [
        manifest_of(10, val_loss=1.0),
        manifest_of(15, epoch=1),
        manifest_of(20),
        manifest_of(22, epoch=2, pinned=True),
        manifest_of(30, epoch=3, val_loss=2.0, reason="interrupt"),
    ]
    assert tiers(manifests, Policy(1, 1, keep_every_steps=10, keep_epochs=2)) == {
        30: ["latest", "rolling", "every", "epoch", "interrupt"],
        22: ["epoch", "pinned"],
        20: ["every"],
        15: [],
        10: ["every", "best"],
    }


def test_a_policy_is_what_the_settings_say():
    settings = CheckpointConfig(keep_last=4, keep_best=2, keep_every_steps=9, keep_epochs=3, max_disk_bytes=8)
    assert policy_of(settings) == Policy(4, 2, 9, 3, 8)


MANIFESTS = [
    manifest_of(1, val_loss=1.0),
    manifest_of(2, val_loss=2.0),
    manifest_of(3, epoch=1),
    manifest_of(4),
    manifest_of(5, pinned=True),
    manifest_of(6),
    manifest_of(8),
    manifest_of(9),
]
HOLDING = Holding(
    MANIFESTS,
    {manifest.step: 100 for manifest in MANIFESTS},
    {".damaged-step-00000007": 50, ".abandoned-step-00000001": 60},
    other_bytes=10,
)


def removed(max_disk_bytes, held=(), keep_last=3):
    policy = Policy(keep_last, 2, keep_every_steps=4, keep_epochs=1, max_disk_bytes=max_disk_bytes)
    return removals(HOLDING, policy, in_flight_bytes=100, held=held)


def removed_steps(max_disk_bytes, **changes):
    return [removal.name.lstrip(".").replace("step-0000000", "") for removal in removed(max_disk_bytes, **changes)]


def test_without_a_bound_only_what_no_tier_keeps_goes():
    assert removed_steps(None, keep_last=2) == ["6"] and removed(None, keep_last=2)[0].reason == UNKEPT
    assert removed_steps(None) == []


def test_under_a_bound_the_least_valuable_go_first_and_the_protected_never():
    assert removed_steps(1020) == []
    assert removed_steps(1019) == ["damaged-7"]
    assert removed_steps(1, keep_last=2) == ["6", "damaged-7", "abandoned-1", "3", "4", "8", "2"]
    assert removed_steps(1) == ["damaged-7", "abandoned-1", "6", "3", "4", "8", "2"]


def test_what_is_held_stays():
    held = {"step-00000006", ".abandoned-step-00000001"}
    assert removed_steps(1, keep_last=2, held=held) == ["damaged-7", "3", "4", "8", "2"]


def test_a_reason_is_told_in_words_with_figures():
    reasons = {removal.name: removal.reason for removal in removed(1)}
    assert reasons[".damaged-step-00000007"] == (
        "max_disk_bytes: 1.02 kB with one being written, 1 bytes allowed; what was set aside goes first"
    )
    assert reasons["step-00000006"].endswith("; the oldest of the tier 'rolling' goes next")
    assert reasons["step-00000002"].endswith("; the worst of the best goes next")


def test_a_bound_that_cannot_hold_what_is_never_removed_is_told_with_figures():
    policy = Policy(3, 2, max_disk_bytes=409)
    told = shortage(HOLDING, policy, in_flight_bytes=100)
    for words in (
        "max_disk_bytes is 409 bytes, and 410 bytes are needed",
        "300 bytes for the newest",
        "steps 1, 5, 9",
        "to 410 or more",
    ):
        assert words in told
    assert "\n" not in told
    assert shortage(HOLDING, Policy(3, 2, max_disk_bytes=410), in_flight_bytes=100) is None
    assert shortage(HOLDING, Policy(3, 2), in_flight_bytes=10**18) is None
    assert "are needed: 0 bytes for the newest" in shortage(
        Holding([], {}), Policy(1, 1, max_disk_bytes=5), in_flight_bytes=6
    )


def test_how_much_a_run_needs_and_keeps_is_known_in_advance():
    assert least_bytes(Policy(3, 0), 10) == 20 and least_bytes(Policy(3, 5), 10) == 30
    assert most_kept(Policy(3, 2, keep_every_steps=100, keep_epochs=4), max_steps=1050) == 3 + 2 + 4 + 10
    assert most_kept(Policy(0, 0), max_steps=9) == 1


def going(step, usual, **facts):
    """A manifest whose run had its last usual loss at step `usual`."""
    return manifest_of(
        step,
        state={"guard": {"in_all": 0, "usual": {"step": usual, "losses": [], "unusual_in_a_row": step - usual}}},
        **facts,
    )


def test_what_is_saved_after_losses_became_unusual_pushes_the_last_one_from_before_not_out():
    policy, there = Policy(3, 0), []
    for step in range(10, 100, 10):  # pruned after each, as a run does; the loss is usual up to step 34
        there.append(going(step, min(step, 34)))
        kept = tiers(there, policy)
        there = [manifest for manifest in there if kept[manifest.step]]
    assert [manifest.step for manifest in there] == [30, 80, 90] and kept[30] == ["rolling"]
    assert sum(map(bool, tiers([going(10, 10), going(20, 20), going(30, 30), going(40, 40)], policy).values())) == 3
    assert tiers([going(10, 10), going(20, 10)], Policy(1, 0))[10] == [], (
        "one that is not known to be sound, where one is kept"
    )


def test_a_bound_takes_the_last_one_from_before_losses_became_unusual_last():
    manifests = [going(step, min(step, 15)) for step in (10, 20, 30, 40)]
    holding = Holding(manifests, {manifest.step: 100 for manifest in manifests})
    names = [removal.name for removal in removals(holding, Policy(4, 0, max_disk_bytes=1))]
    assert names == ["step-00000020", "step-00000030", "step-00000010"]


def test_what_copies_hold_counts_among_what_is_kept_at_once():
    assert most_kept(Policy(3, 1), 100, has_copies=True) == most_kept(Policy(3, 1), 100) + 2
    assert most_kept(Policy(3, 1, max_disk_bytes=9), 100, has_copies=True) == most_kept(Policy(3, 1), 100), (
        "a bound goes before them"
    )


def test_a_run_that_may_roll_back_keeps_one_from_before_the_step_at_which_it_may_have_gone_wrong():
    settings = CheckpointConfig(keep_last=1)
    assert (policy_of(settings).keep_last, policy_of(settings, 3).keep_last) == (1, 2)
    assert policy_of(CheckpointConfig(keep_last=5), 3).keep_last == 5
    assert most_kept(policy_of(settings, 3), 9) == most_kept(policy_of(settings), 9) + 1, "the forecast knows"
    there = []
    for step, usual in ((10, 10), (20, 20), (30, 22), (40, 22), (50, 22)):
        there = [
            m
            for m in [*there, going(step, usual)]
            if tiers([*there, going(step, usual)], policy_of(settings, 3))[m.step]
        ]
        assert len(there) <= 2
        assert step == 10 or any(m.step < usual for m in there)


def test_one_from_when_all_ranks_agreed_is_kept_and_forecast():
    policy = policy_of(CheckpointConfig(keep_last=1), 3, keep_agreed=1)
    manifests = [manifest_of(step, state={"rollbacks": {"agreed": 12}}) for step in (5, 10, 20, 30, 40)]
    kept = tiers(manifests, policy)
    assert {step: names for step, names in kept.items() if "agreed" in names} == {10: ["agreed"]}
    assert most_kept(policy, 9) == most_kept(policy_of(CheckpointConfig(keep_last=1), 3), 9) + 1
