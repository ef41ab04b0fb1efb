"""Precision: what was asked, what is possible, what was decided and why (decide.py)."""
