"""Turns a packed set's shards into encoded samples, in an order that is known beforehand."""
