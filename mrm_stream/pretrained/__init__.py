"""Turns a file of weights, of this project or another, into a model that starts from them; and back."""
