"""Turns records into shards: tars of small grey JPEGs, token ids and reports, their indexes, and the set's manifest."""
