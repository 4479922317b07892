"""Readers: one file of a source to documents, streaming; a module a format."""
