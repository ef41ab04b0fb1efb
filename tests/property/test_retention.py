import math

from hypothesis import given
from hypothesis import strategies as st

from tests.property.strategies import checkpoint_sets
from trainer.checkpoint.retention import Policy, best_first, tiers

policies = st.builds(Policy, keep_last=st.integers(0, 5), keep_best=st.integers(0, 5))


def kept_of(manifests, policy):
    kept = tiers(manifests, policy)
    return [manifest for manifest in manifests if kept[manifest.step]]


@given(checkpoint_sets(), policies)
def test_the_newest_and_the_best_are_never_dropped(manifests, policy):
    kept = {manifest.step for manifest in kept_of(manifests, policy)}
    if manifests:
        assert max(manifest.step for manifest in manifests) in kept
    finite = [m for m in manifests if m.val_loss is not None and math.isfinite(m.val_loss)]
    if finite and policy.keep_best:
        assert min(finite, key=lambda m: (m.val_loss, m.step)).step in kept


@given(checkpoint_sets(), policies)
def test_what_is_kept_is_kept_again(manifests, policy):
    kept = kept_of(manifests, policy)
    assert kept_of(kept, policy) == kept


@given(checkpoint_sets(), policies)
def test_no_more_are_kept_than_the_tiers_hold(manifests, policy):
    assert len(kept_of(manifests, policy)) <= max(policy.keep_last, 1) + policy.keep_best


@given(checkpoint_sets(), policies, st.randoms(use_true_random=False))
def test_the_order_on_disk_means_nothing(manifests, policy, random):
    shuffled = random.sample(manifests, len(manifests))
    assert tiers(shuffled, policy) == tiers(manifests, policy)


@given(checkpoint_sets(), policies)
def test_with_more_room_no_fewer_are_kept(manifests, policy):
    kept = {m.step for m in kept_of(manifests, policy)}
    roomier = Policy(policy.keep_last + 1, policy.keep_best + 1)
    assert kept <= {m.step for m in kept_of(manifests, roomier)}


@given(checkpoint_sets())
def test_the_best_come_in_the_order_of_their_losses(manifests):
    values = [manifest.val_loss for manifest in best_first(manifests)]
    assert values == sorted(values) and all(math.isfinite(value) for value in values)
