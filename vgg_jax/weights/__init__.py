"""Weights in and out: this project's own file, those of other frameworks, and what a model expects of pixels, as data."""
