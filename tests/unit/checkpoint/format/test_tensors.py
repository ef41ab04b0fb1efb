import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.messages import refuses
from trainer.checkpoint.format.tensors import differing_tensors


def write(path, **changes):
    tensors = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(600_000), "c": torch.zeros(0)}
    save_file({name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}, path)
    return path


def test_equal_files_have_no_differing_tensors(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    assert differing_tensors(a, b) == ([], 3)


def test_a_tensor_differs_by_a_bit_a_shape_a_dtype_or_by_not_being_there(tmp_path):
    a = write(tmp_path / "a")
    late = torch.ones(600_000)
    late[-1] = 1 + 2**-23
    assert differing_tensors(a, write(tmp_path / "b", b=late)) == (["b"], 3)
    assert differing_tensors(a, write(tmp_path / "b", a=torch.arange(12.0).reshape(4, 3))) == (["a"], 3)
    assert differing_tensors(a, write(tmp_path / "b", a=torch.arange(12.0).reshape(3, 4).view(torch.int32))) == (
        ["a"],
        3,
    )
    assert differing_tensors(a, write(tmp_path / "b", c=None, d=torch.ones(1))) == (["c", "d"], 4)


def test_the_order_in_the_file_and_its_metadata_mean_nothing(tmp_path):
    tensors = {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.float64)}
    save_file(tensors, tmp_path / "a")
    save_file(tensors, tmp_path / "b", metadata={"format": "pt", "longer": "x" * 50})
    assert differing_tensors(tmp_path / "a", tmp_path / "b") == ([], 2)


def header(content):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        b"\xff" * 8,
        header(b"{"),
        header([1]),
        header({"a": 1}),
        header({"a": {}}),
        header({"a": {"data_offsets": ["x"]}}),
        header(b"[" * 50_000),
        (100).to_bytes(8, "little") + b"{}",
    ],
)
def test_what_is_no_safetensors_file_is_a_value_error(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    for first, second in ((tmp_path / "a", write(tmp_path / "b")), (tmp_path / "b", tmp_path / "a")):
        with refuses(ValueError, "safetensors"):
            differing_tensors(first, second)


@given(st.data())
def test_whatever_stands_in_a_file_nothing_but_a_sentence_comes_of_it(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    content = bytearray(write(folder / "a", b=torch.ones(3)).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "b").write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        names, _ = differing_tensors(folder / "a", folder / "b")
        assert isinstance(names, list)
    except (ValueError, OSError):
        pass
