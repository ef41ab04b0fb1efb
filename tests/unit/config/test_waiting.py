"""What a launch says of waiting threads, by the processor, and whose word wins."""

import pytest

from trainer.config.waiting import SPINS, SPINS_WITH_AVX512, waiting


@pytest.mark.parametrize(
    ("described", "spins"),
    [
        ("processor : 0\nflags : fpu avx2 avx512f\n\nprocessor : 1\n", SPINS_WITH_AVX512),
        ("processor : 0\nflags : fpu avx2 avx512_vnni_alike\n", SPINS),
        ("processor : 0\nFeatures : asimd sve\n", SPINS),
        (None, SPINS),
    ],
)
def test_a_launch_bounds_the_spinning_of_waiting_threads_by_what_the_processor_can(tmp_path, described, spins):
    processor = tmp_path / "cpuinfo"
    if described is not None:
        processor.write_text(described)
    assert waiting({"HOME": "/home/you"}, processor) == {"GOMP_SPINCOUNT": str(spins)}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_a_person_has_chosen_is_left_alone(name):
    assert waiting({name: "anything"}) == {}
