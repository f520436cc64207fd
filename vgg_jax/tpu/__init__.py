"""What the TPU compiler says of a program, on a machine without a TPU; `vgg-jax compile-check` is its command line."""
