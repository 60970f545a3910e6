"""Image files as found in the wild -> the small grey JPEGs, and the masks, that a shard holds."""
