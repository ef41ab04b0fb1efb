import pytest

from tests.messages import says
from tests.unit.checkpoint.format.test_manifest import manifest_of
from trainer.checkpoint.format.manifest import Description
from trainer.checkpoint.resume.changes import Change, changes, markdown, refusal, sentences

IDENTITY = {
    "parameter_shapes": "5a",
    "vocab_size": 257,
    "tokenizer": "70",
    "training_data": "da" * 16,
    "sequence_length": 16,
    "seed": 1,
    "optimizer": "adamw",
}
MODEL = {"rope_theta": 50, "hidden_size": 8, "transformers_version": "5.1"}
SETTINGS = {
    "name": "a",
    "global_batch": 8,
    "micro_batch": 2,
    "optimizer.lr": 0.003,
    "optimizer.name": "adamw",
    "data.corpus": "small",
    "data.train": [],
    "data.tokenizer": None,
    "evaluation.every_steps": 10,
    "model.config": {"rope_theta": 50},
    "resume_from_checkpoint": "latest",
    "checkpoint.every_steps": None,
}
VERSIONS = {"torch": "2.12.0", "accelerate": "1.14.0", "transformers": "5.17.0", "trainer": "0.1.0"}


def before(**facts):
    return manifest_of(
        302,
        **{
            "identity": IDENTITY,
            "model": MODEL,
            "versions": VERSIONS,
            "tokenizer": "bytes",
            "validation": "aa",
            **facts,
        },
    )


def now(*, identity=(), model=(), settings=(), versions=(), **facts):
    return Description(
        {**IDENTITY, **dict(identity)},
        {**MODEL, **dict(model)},
        facts.pop("tokenizer", "bytes"),
        257,
        facts.pop("precision", "no"),
        {**VERSIONS, **dict(versions)},
        "",
        validation=facts.pop("validation", "aa"),
        settings={**SETTINGS, **dict(settings)},
        **facts,
    )


def found(*, processes=1, settings_before=SETTINGS, manifest=None, **present):
    return changes(manifest or before(), settings_before, now(**present), processes)


def test_nothing_has_changed_where_everything_is_equal():
    assert found() == [] and refusal([], ()) is None and sentences([], 302) == []


def test_settings_that_may_change_are_told_by_name_and_none_is_refused():
    told = found(
        settings={
            "name": "b",
            "global_batch": 16,
            "optimizer.lr": 0.001,
            "resume_from_checkpoint": "302",
            "resume.allow_changes": ["seed"],
            "new": 1,
        },
        processes=2,
        precision="bf16",
    )
    assert refusal(told, ()) is None and all(change.key is None for change in told)
    assert sentences(told, 302) == [
        "changed since step 302: global_batch 8 -> 16, optimizer.lr 0.003 -> 0.001, processes 1 -> 2, precision no -> bf16"
    ]


@pytest.mark.parametrize(
    ("key", "present"),
    [
        ("data", {"identity": {"training_data": "db" * 16}}),
        ("tokenizer", {"identity": {"tokenizer": "71"}}),
        ("sequence_length", {"identity": {"sequence_length": 32}}),
        ("seed", {"identity": {"seed": 2}}),
        ("optimizer", {"identity": {"optimizer": "muon"}, "settings": {"optimizer.name": "muon"}}),
        ("model.rope_theta", {"model": {"rope_theta": 10000}, "settings": {"model.config": {}}}),
    ],
)
def test_what_makes_another_run_is_refused_unless_its_key_is_allowed(key, present):
    (change,) = found(**present)
    assert change.key == change.name == key
    assert f"resume.allow_changes=[{key}]" in refusal([change], ())
    assert refusal([change], (key,)) is None
    assert f"resume.allow_changes=[other, {key}]" in refusal([change], ("other",))


def test_what_is_newly_trained_or_frozen_is_told_with_what_becomes_of_its_moments():
    told = found(manifest=before(frozen=["embed", "layers.0.up"]), frozen=["embed", "layers.1.up", "layers.2.up"])
    assert refusal(told, ()) is None
    assert [(change.name, change.now) for change in told] == [
        ("newly trained", ["layers.0.up"]),
        ("newly frozen", ["layers.1.up", "layers.2.up"]),
    ]
    first, *meanings = sentences(told, 302)
    says(first, "newly trained layers.0.up", "newly frozen layers.*.up (2)")
    says(meanings[0], "newly trained", "layers.0.up", "moments begin at zero")
    says(meanings[1], "newly frozen", "layers.*.up (2)", "moments are dropped")
    assert "layers.2.up" in markdown(told, 302)
    assert found(manifest=before(frozen=["embed"]), frozen=["embed"]) == []


@pytest.mark.parametrize("fact", ["parameter_shapes", "vocab_size"])
def test_what_could_not_be_loaded_is_refused_whatever_is_allowed(fact):
    told = found(identity={fact: 9}, model={"hidden_size": 16})
    text = refusal(told, (fact, "model.hidden_size", "data"))
    assert text and "allow_changes" not in text
    assert "model.hidden_size is 16 here and 8 in the checkpoint" in refusal(told, ())


def test_data_and_tokenizers_are_told_by_their_names_and_by_digests_only_where_the_names_are_the_same():
    other = found(
        identity={"training_data": "db" * 16, "tokenizer": "71"},
        tokenizer="gpt2",
        settings={"data.corpus": "large", "data.tokenizer": "gpt2"},
    )
    assert [change.words for change in other] == ["tokenizer bytes -> gpt2", "data small -> large"]
    (same,) = found(identity={"training_data": "db" * 16})
    assert same.words == "data small (dadadada) -> small (dbdbdbdb)"
    shards = {**SETTINGS, "data.corpus": None, "data.train": ["a.bin", "b.bin"]}
    (named,) = found(identity={"training_data": "db" * 16}, settings_before=shards)
    assert (named.before, named.now) == ("a.bin, b.bin", "small")
    (unnamed,) = found(identity={"training_data": "db" * 16}, settings_before={})
    assert unnamed.key == "data" and unnamed.before == "da" * 16
    (moved,) = found(settings={"data.corpus": "/disk/small"})
    assert moved == Change("data.corpus", "small", "/disk/small")


def test_another_sequence_length_alone_is_not_other_data():
    cut = {16: "da" * 16, 32: "dc" * 16}
    longer = {"identity": {"sequence_length": 32, "training_data": cut[32]}, "training_data_at": cut.__getitem__}
    assert [change.key for change in found(**longer)] == ["sequence_length"]
    assert [change.key for change in found(**{**longer, "training_data_at": lambda length: "ee" * 16})] == [
        "data",
        "sequence_length",
    ]


def test_other_versions_are_told_where_both_are_known():
    told = found(
        versions={"torch": "2.13.0", "trainer_code": "abc"}, manifest=before(versions={"torch": "2.12.0", "gone": "1"})
    )
    assert told == [Change("torch", "2.12.0", "2.13.0", is_version=True)]


def test_what_it_is_computed_on_and_how_is_told_where_both_are_known():
    told = found(
        conditions={"device": "H200", "compiled": "inductor", "new": 1},
        manifest=before(conditions={"device": "H100", "compiled": "inductor"}),
    )
    assert told == [Change("device", "H100", "H200")]


def test_held_out_data_of_another_content_are_told_where_no_setting_says_it():
    (change,) = found(validation="bb" * 16)
    assert (
        change.name == "held-out data"
        and all("small" in value for value in (change.before, change.now))
        and change.before != change.now
    )
    assert [change.name for change in found(validation="bb", settings={"data.corpus": "large"})] == ["data.corpus"]


def test_what_an_allowed_change_means_is_said():
    told = found(identity={"optimizer": "muon", "seed": 2})
    assert (
        any("optimizer" in line and "moments begin anew" in line for line in sentences(told, 302)[1:])
        and len(sentences(told, 302)) == 3
    )


def test_a_model_field_that_only_one_of_the_two_knows_says_nothing():
    assert found(model={"new": 2, "transformers_version": "5.2"}, manifest=before(model={**MODEL, "gone": 1})) == []


def test_tensorboards_text_has_a_row_for_each_change():
    text = markdown([Change("global_batch", 8, 16), Change("model.x", None, [1])], 302)
    assert "step 302" in text and "| global_batch | `8` | `16` |" in text and "| model.x | `none` | `[1]` |" in text
