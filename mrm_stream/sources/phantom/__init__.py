"""Turns a seed into a data set of synthetic chest radiographs, reports, labels and masks in MIMIC-CXR-JPG's layout."""
