"""A package as a person would write it: an architecture of their own that registers with transformers, known to no other library."""

from pathlib import Path

NAME = "running_mean"

CODE = '''
"""A language model without attention: each block adds a gated mean of all positions so far."""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast


class RunningMeanConfig(PretrainedConfig):
    model_type = "running_mean"

    vocab_size: int = 256
    hidden_size: int = 32
    num_hidden_layers: int = 2
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False


class Block(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.gate, self.value = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, hidden):
        positions = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)[None, :, None]
        return hidden + torch.sigmoid(self.gate(hidden)) * self.value(hidden).cumsum(1) / positions


class RunningMeanBase(PreTrainedModel):
    config_class = RunningMeanConfig
    base_model_prefix = "model"


class RunningMeanModel(RunningMeanBase):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config.hidden_size) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def forward(self, input_ids=None, **_):
        hidden = self.embed_tokens(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))


class RunningMeanForCausalLM(RunningMeanBase, GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.model = RunningMeanModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids=None, **_):
        return CausalLMOutputWithPast(logits=self.lm_head(self.model(input_ids).last_hidden_state))


AutoConfig.register("running_mean", RunningMeanConfig)
AutoModelForCausalLM.register(RunningMeanConfig, RunningMeanForCausalLM)
'''


def write_package(folder: Path) -> Path:
    """Writes the package into a folder that is to be on the path, and gives the package's own."""
    package = folder / NAME
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(CODE, encoding="utf-8")
    return package
