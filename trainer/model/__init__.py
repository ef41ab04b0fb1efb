"""The model: any causal language model of transformers, from random weights or a checkpoint, and its output head with the loss.

presets.py           models by name: fields of a transformers config
resolve.py           preset and fields -> a checked transformers config, with the vocabulary of the data
build.py             config -> module with seeded weights, or its shapes only, on no device
head.py              the output head and its loss in chunks of tokens, so that the logits of a micro-batch never exist as a whole
after_head.py        a family's factor or soft cap on its logits
routing.py           models with experts: their auxiliary loss, and how they were drawn
head_way.py, fused.py   whether a chunk's logits go through one compiled kernel, and that kernel
unrolled.py          families that are not compiled, and why
flops.py             arithmetic per token, parameter counts, a GPU's peak
scores.py            log-likelihood of given tokens, for evaluation
load.py              the model of a checkpoint
pretrained.py        the model that a run begins from, loaded by transformers and audited; digest.py: what its weights are known by
like_source.py       what an export takes from the model that the run began from
portable.py, tokenizer_files.py, card.py   what an exported model needs beyond its weights
"""
