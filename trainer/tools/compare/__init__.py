"""Is one run as good as another? What `trainer compare A B ...` reads, judges and shows; it needs no torch.

runs.py     a run's folder: settings, precision, versions, curve; and which runs are of one recipe
noise.py    a gap's noise: what the batches of the window make, and what another run of the same recipe would; pure
judge.py    every run against the first: gaps with their bands, along the curve and at its end; pure
show.py     the comparison as text and as JSON
page.py     the same as one HTML page (plots.py)
"""
