"""The Transformer, the recurrent baseline, and the way to and from Hugging Face."""
