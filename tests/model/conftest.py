"""Fixtures of this folder."""

from tests.tiny_model import _one_thread, batch, make_model

__all__ = ["_one_thread", "batch", "make_model"]
