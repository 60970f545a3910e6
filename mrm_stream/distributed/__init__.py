"""Turns processes that a launcher has started into ranks that know each other, and that end together."""
