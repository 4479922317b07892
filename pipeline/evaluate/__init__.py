"""Perplexity, text and classification metrics, generation."""
