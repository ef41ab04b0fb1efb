import json
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainer.metrics import curves
from trainer.metrics.curves import CURVE, LOST, cut_after, end_of_step, read_records, records_from

steps = st.lists(st.integers(1, 40), max_size=15).map(sorted)


@settings(deadline=None)
@given(steps, st.integers(-1, 40), st.integers(0, 10**6), st.binary(max_size=30))
@example([3, 3], 0, 49, b"")  # cut before the line end of a step that stands there twice
def test_whatever_the_tail_every_whole_record_is_kept_or_moved(steps, resumed, cut_at, garbage):
    """The file is cut at any byte, anything is written behind it, and a resume goes back to any step."""
    lines = [json.dumps({"step": step, "loss": step / 3}).encode() + b"\n" for step in steps]
    content = b"".join(lines)
    cut_at %= len(content) + 1
    whole = [json.loads(line) for number, line in enumerate(lines) if sum(map(len, lines[: number + 1])) <= cut_at]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torn = content[:cut_at]
        (folder / CURVE).write_bytes(
            torn + (b"" if torn.endswith(b"\n") or not torn else b"\n") + garbage.replace(b"{", b"")
        )
        found = read_records(folder / CURVE)
        assert found[: len(whole)] == whole
        assert len(found) <= len(whole) + 1
        moved = cut_after(folder, resumed)
        assert read_records(folder / CURVE) == [record for record in found if record["step"] <= resumed]
        assert read_records(folder / LOST) == [record for record in found if record["step"] > resumed]
        assert moved == len(read_records(folder / LOST))
        assert cut_after(folder, resumed) == 0
        with open(folder / CURVE, "ab") as file:
            file.write(b'{"step": 41}\n')
        assert read_records(folder / CURVE)[-1] == {"step": 41}


@settings(deadline=None)
@given(steps, st.integers(-1, 41), st.integers(1, 60), st.booleans())
def test_the_end_of_a_step_is_found_from_the_end_whatever_the_blocks(steps, wanted, block_bytes, is_torn):
    lines = [json.dumps({"step": step, "loss": step / 3}).encode() + b"\n" for step in steps]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / CURVE
        path.write_bytes(b"".join(lines) + b'{"step": 0, "lo' * is_torn)
        before, curves.BLOCK_BYTES = curves.BLOCK_BYTES, block_bytes
        try:
            end = end_of_step(path, wanted)
        finally:
            curves.BLOCK_BYTES = before
        assert end == sum(len(line) for line, step in zip(lines, steps) if step <= wanted)
        assert [record["step"] for _, record in records_from(path, end)] == [step for step in steps if step > wanted]
