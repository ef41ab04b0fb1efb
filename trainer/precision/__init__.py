"""Precision: what was asked, what is possible, what was decided and why, and fp8 from the conversion of the model to the numbers of a step.

Decided before the model exists:
recipes.py      the ways to compute in fp8, and what each needs
probe.py        gathers the facts: device, TransformerEngine's words, a small layer computed both ways
decide.py       facts -> one decision with its reason; the ranks' agreement (no torch)
measured.py     what `bench precision` found, and how a run finds it (no torch)
timing.py       how fast a mode is on this device beside fp32: one small product
negotiate.py    all of these: the one decision that all ranks compute in

fp8 in the model:
backend.py      the only file that imports TransformerEngine
convert.py      which layers compute in fp8, and their replacement before the optimizer exists
layers.py       the fp8 layers, and the classes that Accelerate's converter does not recognise
audit.py        what is true after `prepare`, and what really ran in fp8
fp8_model.py    a converted model: its layers, their common switch, its audit, its loss in fp8 and in bf16

While a run trains, as trainer/run/ and loop.py use it:
monitor.py      an Fp8Monitor where fp8 was decided, else NoFp8, which has nothing to do in a step
fp8_monitor.py  statistics, comparison with bf16, and the fallback to bf16
statistics.py   how well tensors fit into fp8
record.py       what records, logs and checkpoints state of the precision
"""
