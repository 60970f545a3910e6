"""Turns encoded radiographs and crop windows into pairs of high- and low-resolution tensors."""
