"""The model card of an export: a README.md that says what the model is and where it comes from."""

from collections.abc import Mapping

from transformers import PreTrainedModel

from trainer.model.flops import parameter_counts

BEGUN_FROM = "begun from"
"""The fact that names another model; without it the weights were random."""


def model_card(
    model: PreTrainedModel, name: str, vocab_size: int, facts: Mapping[str, object], license: str = "unknown"
) -> str:
    """A short README in Markdown: what the model is, the run's facts by name, how to open it.

    license  as the hub knows licences (`mit`, `apache-2.0`, ...); `unknown` until whoever answers for the model has chosen one
    """
    rows = {
        "architecture": type(model).__name__,
        "parameters": f"{model.num_parameters():,}",
        **(
            {"active parameters": f"{active:,} a token"}
            if (active := parameter_counts(model).active) < model.num_parameters()
            else {}
        ),
        "vocabulary": f"{vocab_size:,} ids",
        "precision": str(model.dtype).removeprefix("torch."),
        **facts,
    }
    table = "\n".join(f"| {key} | {_cell(value)} |" for key, value in rows.items())
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\nlicense: {license}\n---\n\n# {name}\n\n"
        f"A language model pretrained from {_cell(facts.get(BEGUN_FROM, 'random weights'))}.\n\n| | |\n|---|---|\n{table}\n\n"
        f"```python\n{_import_of(model)}from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n```\n'
    )


def _import_of(model: PreTrainedModel) -> str:
    """The line without which a model of somebody's own architecture cannot be opened; empty for one of transformers."""
    package = type(model).__module__.partition(".")[0]
    return "" if package == "transformers" else f"import {package}  # registers the architecture\n"


def _cell(value: object) -> str:
    """A value on one line of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")
