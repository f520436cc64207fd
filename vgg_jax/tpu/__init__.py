"""Ahead-of-time compilation for TPU slices, without a TPU; its command is `vgg-jax compile-check`."""
