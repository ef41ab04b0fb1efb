"""Imports once, in the server that runs are forked from, what each of them would take seconds to import."""

import accelerate  # noqa: F401
import torch.nn.parallel
import torch.utils.tensorboard  # noqa: F401
import transformers.conversion_mapping
import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama  # noqa: F401

import trainer.session  # noqa: F401
