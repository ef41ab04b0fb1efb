"""What a run can be (schema.py), and how a recipe and its overrides become that (load.py). Imports no torch."""
