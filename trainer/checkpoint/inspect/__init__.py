"""What a person does with checkpoints: list, show, compare, verify, pin, prune, remove."""
