"""Stands in for TransformerEngine where there is no GPU; never fp8, and says so."""

EMULATION = "the tests' emulation of TransformerEngine with torch's float8 casts"
__version__ = "0.0"
