"""The files that come with the package are whole, credited, and refused when damaged."""

import hashlib
import shutil

import pytest

from tests.corpora import train_bpe
from tests.messages import refuses
from trainer.data import assets, bpe
from trainer.errors import DataError


@pytest.fixture
def copied(tmp_path, monkeypatch):
    shutil.copytree(assets.FOLDER, tmp_path / "embedded")
    monkeypatch.setattr(assets, "FOLDER", tmp_path / "embedded")
    return tmp_path / "embedded"


def test_every_packed_file_is_described_and_the_other_way_round():
    packed = {path.name for path in assets.FOLDER.glob("*.xz")}
    described = assets.describe_assets()
    assert packed == described.keys()
    for name, asset in described.items():
        assert len(assets.read_asset(name)) == asset["content_bytes"]
        assert (assets.FOLDER / name).stat().st_size == asset["packed_bytes"]
        assert all(asset[key] for key in ("origin", "licence", "credit", "made", "what"))
        assert name in (assets.FOLDER / "CREDITS.md").read_text()


def test_the_gpt2_vocabulary_is_the_one_tiktoken_pins():
    # source: tiktoken_ext/openai_public.py, expected_hash of r50k_base.tiktoken
    pinned = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
    assert hashlib.sha256(assets.read_asset("gpt2.tiktoken.xz")).hexdigest() == pinned


def test_the_shakespeare_vocabulary_is_what_training_on_the_nine_plays_gives():
    trained = train_bpe(assets.embedded_documents("shakespeare", "train"), vocab_size=4096)
    assert bpe.tiktoken_lines(trained) == assets.read_asset("shakespeare.tiktoken.xz")


def test_validation_is_twelfth_night_and_training_the_other_nine_plays():
    train = assets.embedded_documents("shakespeare", "train")
    validation = assets.embedded_documents("shakespeare", "validation")
    assert (len(train), len(validation)) == (163, 19)
    assert not set(train) & set(validation)
    assert any("Malvolio" in text for text in validation)
    assert not any("Malvolio" in text for text in train)
    assert {source.partition("#")[0] for source, _ in assets.shakespeare_scenes()} >= {"twelfth_night", "hamlet"}
    assert len({source.partition("#")[0] for source, _ in assets.shakespeare_scenes()}) == 10


def test_a_flipped_bit_in_an_asset_is_found(copied):
    path = copied / "gpt2.tiktoken.xz"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with refuses(DataError, "gpt2.tiktoken.xz", "damaged"):
        assets.read_asset("gpt2.tiktoken.xz")


def test_an_asset_whose_content_is_not_the_described_one_is_found(copied):
    description = copied / "assets.json"
    wrong = description.read_text().replace(assets.asset_sha256("gpt2.tiktoken.xz"), "0" * 64)
    description.write_text(wrong)
    with refuses(DataError, "gpt2.tiktoken.xz", "0000000000000000"):
        assets.read_asset("gpt2.tiktoken.xz")


def test_a_missing_asset_says_to_install_again(copied):
    (copied / "gpt2.tiktoken.xz").unlink()
    with refuses(DataError, "gpt2.tiktoken.xz", "package"):
        assets.read_asset("gpt2.tiktoken.xz")


@pytest.mark.parametrize(
    ("ask", "nearest"),
    [
        (lambda: assets.read_asset("gpt2.tiktoken"), "'gpt2.tiktoken.xz'"),
        (lambda: assets.embedded_documents("shakespear", "train"), "'shakespeare'"),
        (lambda: assets.embedded_documents("shakespeare", "valid"), "'validation'"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(ask, nearest):
    with refuses(DataError, nearest):
        ask()
