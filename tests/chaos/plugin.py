"""The plugin of the runs in month.py: what goes wrong inside their ranks is planted as they import it."""

from tests.chaos.planted import plant

plant()
