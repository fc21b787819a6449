"""Heads: how a backbone's features become a task's outputs."""
