"""Which checkpoint to continue from, what may differ from it, and loading it without executing anything from it."""
