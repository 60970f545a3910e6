"""Turns encoded radiographs and crops into pairs of high- and low-resolution tensors."""
