"""Turns a report into token ids: its sections, and the tokenizer."""
