"""Measures how fast a stage is beside what others would use for it: a table, JSON and a plot."""
