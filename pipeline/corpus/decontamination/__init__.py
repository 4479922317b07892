"""Overlap of documents with evaluation sets: their n-grams as a table on disk, looked up for every word of a text."""
