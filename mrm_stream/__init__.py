"""mrm_stream turns radiographs and reports into a pre-trained encoder, by Masked Record Modeling."""

__version__ = "0.1.0"
