"""Turns a task into a trained model: steps, logs, checkpoints, whatever it is that is learned."""
