"""Two thousand mutations of a checkpoint: each is found or changed nothing, and the older one is taken by itself."""

import os
import random
import shutil

import pytest

from tests.small_checkpoints import commit
from tests.small_runs import Small
from trainer.checkpoint.format.manifest import MANIFEST, read_manifest
from trainer.checkpoint.format.store import verify
from trainer.checkpoint.resume.select import resolve
from trainer.config.schema import CheckpointConfig
from trainer.errors import CheckpointError

OLDER, NEWEST = 1, 2


def written_by_the_writer(store):
    """Two checkpoints of a model of one layer, from a real writer."""
    run = Small(store, CheckpointConfig())
    for _ in (OLDER, NEWEST):
        run.step()
        run.save("every")
    run.checkpointer.close()


def of_a_few_bytes(store):
    commit(store, OLDER)
    commit(store, NEWEST)


class Mutations:
    """Ways to harm the newest of two checkpoints; each returns nothing, and may happen to change nothing."""

    def __init__(self, store, generator):
        self.folder, self.older, self.random = store.path(NEWEST), store.path(OLDER), generator
        self.sound = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        self.manifest = read_manifest(self.folder)
        self.hit = None

    def mutate(self, kind):
        self.hit = self.folder / self.random.choice(sorted(self.sound))
        getattr(self, kind)(self.hit, self.sound[self.hit.name])

    def restore(self):
        """Brings everything back that a mutation may have changed."""
        for path in list(self.folder.iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in self.sound or path.is_symlink():
                path.unlink()
        for name, content in self.sound.items():
            if not (self.folder / name).exists() or (self.folder / name).read_bytes() != content:
                (self.folder / name).write_bytes(content)

    def is_harmless(self):
        """Whether all bytes are what they were, or in the manifest at least what they mean."""
        if sorted(os.listdir(self.folder)) != sorted(self.sound) or not all(
            path.is_file() for path in self.folder.iterdir()
        ):
            return False
        if any((self.folder / name).read_bytes() != self.sound[name] for name in self.sound if name != MANIFEST):
            return False
        try:
            return read_manifest(self.folder) == self.manifest
        except CheckpointError:
            return False

    def flip(self, path, content):
        place = self.random.randrange(len(content))
        path.write_bytes(
            content[:place] + bytes([content[place] ^ 1 << self.random.randrange(8)]) + content[place + 1 :]
        )

    def truncate(self, path, content):
        path.write_bytes(content[: self.random.randrange(len(content))])

    def lengthen(self, path, content):
        path.write_bytes(content + self.random.randbytes(self.random.randint(1, 5000)))

    def delete(self, path, _content):
        path.unlink()

    def zero(self, path, content):
        start = self.random.randrange(len(content))
        length = self.random.choice((1, 16, 512, 4096))
        path.write_bytes(content[:start] + bytes(len(content[start : start + length])) + content[start + length :])

    def move_within(self, path, content):
        """A block that was written to another place of its file."""
        start, other = (self.random.randrange(len(content)) for _ in range(2))
        block = content[start : start + self.random.choice((1, 8, 512))]
        path.write_bytes((content[:other] + block + content[other + len(block) :])[: len(content)])

    def swap(self, path, content):
        other = self.folder / self.random.choice(sorted(self.sound))
        path.write_bytes(self.sound[other.name]), other.write_bytes(content)

    def stale(self, path, _content):
        """The file, or the manifest, of another step."""
        path = self.random.choice((path, self.folder / MANIFEST))
        shutil.copyfile(self.older / path.name, path)

    def stale_all_but_manifest(self, _path, _content):
        for name in self.sound.keys() - {MANIFEST}:
            shutil.copyfile(self.older / name, self.folder / name)

    def extra(self, _path, content):
        folder = self.folder / self.random.choice(("", "deeper", "deeper/still"))
        folder.mkdir(parents=True, exist_ok=True)
        (
            folder
            / self.random.choice(("pytorch_model.bin", ".hidden", "optimizer.bin.1", "model.safetensors.index.json"))
        ).write_bytes(content)

    def another_name(self, path, _content):
        path.rename(path.with_name(self.random.choice((path.name.upper(), f"{path.name}~", f".{path.name}"))))

    def folder_in_its_place(self, path, _content):
        path.unlink(), path.mkdir()

    def dangling_link(self, path, _content):
        path.unlink(), path.symlink_to("nowhere")


KINDS = [
    "flip",
    "truncate",
    "lengthen",
    "delete",
    "zero",
    "move_within",
    "swap",
    "stale",
    "stale_all_but_manifest",
    "extra",
    "another_name",
    "folder_in_its_place",
    "dangling_link",
]


@pytest.mark.parametrize("number_of_them", [200, pytest.param(1000, marks=pytest.mark.long)])
@pytest.mark.parametrize("prepare", [written_by_the_writer, of_a_few_bytes], ids=["of-the-writer", "of-a-few-bytes"])
def test_each_mutation_is_found_or_changed_nothing_and_the_older_checkpoint_is_taken(store, prepare, number_of_them):
    prepare(store)
    mutations = Mutations(store, random.Random(1))
    found, harmless, files = dict.fromkeys(KINDS, 0), 0, set()
    for number in range(number_of_them):
        kind = KINDS[number % len(KINDS)]
        mutations.mutate(kind)
        problems, what = verify(store.path(NEWEST)), f"{kind} of {mutations.hit.name}, mutation {number}"
        if mutations.is_harmless():
            assert problems == [], what
            harmless += 1
        else:
            resolution = resolve(store, "latest")
            assert problems and resolution.path == store.path(OLDER), what
            assert list(resolution.refused) == [store.path(NEWEST)] and resolution.refused[store.path(NEWEST)], what
            found[kind] += 1
            files.add(mutations.hit.name)
        mutations.restore()
    assert verify(store.path(NEWEST)) == []
    assert resolve(store, "latest").path == store.path(NEWEST)
    assert all(found.values()) and files == mutations.sound.keys(), "every way to harm, and every file, was met"
    assert harmless < number_of_them / 10
