"""Plain data that packages agree on and would otherwise import from one another: no behaviour, and nothing but the standard library."""

from collections.abc import Callable, Iterable
from typing import Any

IGNORED_LABEL = -100
"""The label of a position that has no target: it adds nothing to the loss, to its count or to a gradient."""

Rows = Callable[[str], Iterable[tuple[str, Any]]]
"""Reads a file or a set of the hub, given by name: (where a row stands, for people; the row)."""
