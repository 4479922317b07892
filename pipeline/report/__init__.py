"""report.html: one self-contained page on a run, made from its manifests, metrics and evaluation files."""
