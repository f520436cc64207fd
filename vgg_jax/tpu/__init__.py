"""What the TPU compiler says of a program, on a machine without a TPU; `vgg_jax.compile_check` is its command line."""
