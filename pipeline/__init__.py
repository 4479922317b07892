"""Headwater: raw corpora in, a pretrained, fine-tuned and evaluated language model out."""

__version__ = "0.1.0"
