"""Weights files: this project's own and those of other frameworks, with the preprocessing that a model expects."""
