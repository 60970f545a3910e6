"""Turns a YAML file and `--set` into settings that are checked: one dataclass a task, its sections beneath it."""
