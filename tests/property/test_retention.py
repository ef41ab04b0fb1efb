import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.property.strategies import checkpoint_sets
from tests.small_checkpoints import manifest_of
from trainer.checkpoint.format.manifest import folder_name
from trainer.checkpoint.format.retention import (
    Holding,
    Policy,
    best_first,
    least_bytes,
    most_kept,
    protected,
    removals,
    shortage,
    tiers,
)

counts = st.integers(0, 5)
policies = st.builds(Policy, counts, counts, st.none() | st.integers(1, 20), counts, st.none() | st.integers(1, 2000))
bounded = st.builds(Policy, counts, counts, st.none() | st.integers(1, 20), counts, st.integers(1, 2000))
ASIDE = (".damaged-step-00000003", ".damaged-step-00000009", ".abandoned-step-00000002", ".abandoned-step-00000002-2")


@st.composite
def holdings(draw) -> Holding:
    manifests = draw(checkpoint_sets())
    weights = st.integers(0, 300)
    return Holding(
        manifests,
        {manifest.step: draw(weights) for manifest in manifests},
        {name: draw(weights) for name in ASIDE[: draw(st.integers(0, len(ASIDE)))]},
        draw(weights),
    )


@st.composite
def held_of(draw, holding: Holding) -> frozenset[str]:
    names = [*(folder_name(manifest.step) for manifest in holding.manifests), *holding.set_aside_bytes]
    return frozenset(draw(st.lists(st.sampled_from(names), max_size=2))) if names else frozenset()


def without(holding: Holding, going) -> Holding:
    """What is left when the removals are done."""
    names = {removal.name for removal in going}
    left = [manifest for manifest in holding.manifests if folder_name(manifest.step) not in names]
    return Holding(
        left,
        {manifest.step: holding.checkpoint_bytes[manifest.step] for manifest in left},
        {name: taken for name, taken in holding.set_aside_bytes.items() if name not in names},
        holding.other_bytes,
    )


def kept_of(manifests, policy):
    kept = tiers(manifests, policy)
    return [manifest for manifest in manifests if kept[manifest.step]]


# Tiers


@given(checkpoint_sets(), policies)
def test_the_newest_the_best_and_the_pinned_are_never_dropped(manifests, policy):
    kept = {manifest.step for manifest in kept_of(manifests, policy)}
    if manifests:
        assert max(manifest.step for manifest in manifests) in kept
    assert {manifest.step for manifest in manifests if manifest.pinned} <= kept
    assert {manifest.step for manifest in best_first(manifests)[: policy.keep_best]} <= kept


@given(checkpoint_sets())
def test_the_best_has_the_lowest_loss_of_all_that_compare_with_the_newest_evaluated(manifests):
    finite = [m for m in manifests if m.val_loss is not None and math.isfinite(m.val_loss)]
    ranked = best_first(manifests)
    assert bool(ranked) == bool(finite)
    if ranked:
        comparable = [m for m in finite if m.validation == ranked[0].validation]
        assert ranked == sorted(comparable, key=lambda m: (m.val_loss, m.step))


@given(checkpoint_sets(), policies)
def test_what_is_kept_is_kept_again(manifests, policy):
    kept = kept_of(manifests, policy)
    assert kept_of(kept, policy) == kept


@given(checkpoint_sets(), policies)
def test_no_more_are_kept_than_the_tiers_hold(manifests, policy):
    num_pinned = sum(manifest.pinned for manifest in manifests)
    max_steps = max((manifest.step for manifest in manifests), default=0)
    assert len(kept_of(manifests, policy)) <= most_kept(policy, max_steps) + num_pinned


@given(checkpoint_sets(), policies, st.randoms(use_true_random=False))
def test_the_order_on_disk_means_nothing(manifests, policy, random):
    shuffled = random.sample(manifests, len(manifests))
    assert tiers(shuffled, policy) == tiers(manifests, policy)


@given(checkpoint_sets(), policies)
def test_with_larger_tiers_no_fewer_are_kept(manifests, policy):
    kept = {m.step for m in kept_of(manifests, policy)}
    roomier = replace(
        policy, keep_last=policy.keep_last + 1, keep_best=policy.keep_best + 1, keep_epochs=policy.keep_epochs + 1
    )
    assert kept <= {m.step for m in kept_of(manifests, roomier)}


# The bound


@given(st.data(), holdings(), bounded, st.integers(0, 400))
def test_the_bound_holds_with_one_in_flight_unless_a_paragraph_says_that_it_cannot(data, holding, policy, in_flight):
    held = data.draw(held_of(holding))
    going = removals(holding, policy, in_flight_bytes=in_flight, held=held)
    left = without(holding, going)
    assert left.num_bytes == holding.num_bytes - sum(removal.num_bytes for removal in going)
    fits = left.num_bytes + in_flight <= policy.max_disk_bytes
    assert fits == (shortage(holding, policy, in_flight_bytes=in_flight, held=held) is None)


@given(st.data(), holdings(), policies, st.integers(0, 400))
def test_nothing_protected_is_removed(data, holding, policy, in_flight):
    held = data.draw(held_of(holding))
    gone = {removal.name for removal in removals(holding, policy, in_flight_bytes=in_flight, held=held)}
    stays = protected(holding.manifests, policy, held)
    assert not gone & {folder_name(step) for step in stays}
    assert not gone & held
    assert {m.step for m in holding.manifests if m.pinned} <= stays
    if holding.manifests:
        assert max(m.step for m in holding.manifests) in stays
    if policy.keep_best:
        assert {m.step for m in best_first(holding.manifests)[:1]} <= stays


@given(st.data(), holdings(), policies, st.integers(0, 400))
def test_pruning_twice_is_pruning_once(data, holding, policy, in_flight):
    held = data.draw(held_of(holding))
    going = removals(holding, policy, in_flight_bytes=in_flight, held=held)
    assert removals(without(holding, going), policy, in_flight_bytes=in_flight, held=held) == []
    assert len({removal.name for removal in going}) == len(going)


@given(st.data(), holdings(), bounded, st.integers(0, 400), st.integers(0, 400))
def test_with_more_room_nothing_more_is_removed(data, holding, policy, in_flight, more):
    held = data.draw(held_of(holding))
    roomier = replace(policy, max_disk_bytes=policy.max_disk_bytes + more)
    fewer = [removal.name for removal in removals(holding, roomier, in_flight_bytes=in_flight, held=held)]
    names = [removal.name for removal in removals(holding, policy, in_flight_bytes=in_flight, held=held)]
    assert names[: len(fewer)] == fewer
    unbounded = removals(holding, replace(policy, max_disk_bytes=None), in_flight_bytes=in_flight, held=held)
    assert names[: len(unbounded)] == [removal.name for removal in unbounded]


@given(st.lists(st.floats(0, 9) | st.none(), max_size=30), bounded, st.integers(1, 300))
def test_at_no_moment_of_a_run_is_the_bound_exceeded_when_it_is_large_enough(val_losses, policy, one):
    """Written, committed, pruned, again and again, as a run does."""
    policy = replace(policy, max_disk_bytes=max(policy.max_disk_bytes, least_bytes(policy, one)))
    holding = Holding([], {})
    for step, val_loss in enumerate(val_losses, start=1):
        assert holding.num_bytes + one <= policy.max_disk_bytes, "while it is written"
        manifests = [*holding.manifests, manifest_of(step, val_loss=val_loss)]
        holding = Holding(manifests, {manifest.step: one for manifest in manifests})
        assert shortage(holding, policy, in_flight_bytes=one) is None
        holding = without(holding, removals(holding, policy, in_flight_bytes=one))
        assert step in {manifest.step for manifest in holding.manifests}
