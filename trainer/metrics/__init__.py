"""What is known about each step, and where it is written: console, train.log, metrics.jsonl, TensorBoard.

curves.py    metrics.jsonl: one JSON object a step, appended; its tail moves aside when a resume goes back
index.py     sums over blocks of it, so that nobody reads millions of records; totals.py: what a run's curve comes to
binned.py    the whole curve as means over bins of tokens, to be drawn and compared
details.py   what every step has beside its core numbers, at a cadence of its own
meters.py    tokens per second, MFU, time left; pure arithmetic on given clocks
console.py   the progress bar on a terminal, plain lines elsewhere
tags.py      which number is drawn under which tag, what it means, and the order of the charts
drawing.py   the thread in which trackers follow metrics.jsonl
thinning.py  which points are drawn of it; event_files.py, history.py: TensorBoard's files, in order and bounded
trackers.py  Accelerate's trackers, each patient with its own failures; board.py: what its HParams tab shows
slow_alarm.py  a run that has become slow: slowdown.py watches its steps, machine_load.py says what the machine does besides
failures.py  writes that a run can do without: counted and logged
reporter.py  puts a step's numbers everywhere they belong
stopwatch.py where a step's time goes, part by part
probes.py    what is measured of model and optimizer now and then: one function a metric (layer_groups, histograms serve it)
expert_load.py  how tokens are spread over a model's experts: tags and numbers
hardware.py  what the machine is doing: GPUs, processors, memory, disks; sampling.py: the thread that looks
profiler.py  torch's profiler over the steps asked for
memory_advice.py  what to do when memory runs out
"""
