"""Turns a batch of image pairs, patch noise and token ids into an image loss and a report loss."""
