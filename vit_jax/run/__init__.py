"""What a run leaves in its directory: its record, its metrics, checkpoints and results."""
