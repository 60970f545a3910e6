"""Turns a data set's directory into records: what there is, before any image or report is read."""
