"""What radiographs of MIMIC-CXR-JPG are like."""

WIDTH, HEIGHT = 2544, 3056
"""Pixels of the most common format."""
QUALITY = 95
"""Of the JPEGs."""
