"""Turns checkpoints and metrics into pictures that a person would rather see than read."""
