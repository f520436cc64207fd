"""vgg_jax: "Very Deep Convolutional Networks for Large-Scale Image Recognition" (arXiv 1409.1556v6), reproduced in JAX."""

__version__ = "0.2.0"
