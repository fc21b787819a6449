"""Training: from a configuration to a run, step by step."""
