"""What the TPU compiler says of a program, on a machine without a TPU; `vgg_jax.commands.compile_check` is its command line."""
