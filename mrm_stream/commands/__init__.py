"""The commands of `mrm-stream`: what a person types -> calls of the parts, and what they say -> words.

Nothing heavy is imported until a command runs, so that `--help` is instant.
"""
