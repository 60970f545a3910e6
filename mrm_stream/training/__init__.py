"""Turns shards and a configuration into a trained model: the only place where stream, decode and model meet."""
