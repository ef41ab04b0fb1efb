"""Precision: what was asked, what is possible, what was decided and why, and fp8 from the conversion of the model to the numbers of a step.

recipes.py      the ways to compute in fp8, and what each needs
decide.py       facts -> one decision with its reason; the ranks' agreement (no torch)
measured.py     what `bench precision` found, and how a run finds it (no torch)
probe.py        gathers the facts: device, TransformerEngine's words, a small layer computed both ways
timing.py       how fast a mode is on this device beside fp32: one small product
backend.py      the door to TransformerEngine
convert.py      which layers compute in fp8, and their replacement before the optimizer exists
layers.py       the fp8 layers, and the classes that Accelerate's converter does not recognise
audit.py        what is true after `prepare`, and what really ran in fp8
statistics.py   how well tensors fit into fp8
watch.py        all of it for one run, as trainer/run/ and loop.py use it
"""
