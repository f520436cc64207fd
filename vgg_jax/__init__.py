"""vgg_jax: "Very Deep Convolutional Networks for Large-Scale Image Recognition" (arXiv 1409.1556v6), reproduced in JAX."""

import sys

__version__ = "0.5.0"

if sys.version_info < (3, 11):  # noqa: UP036, pip refuses it, but a clone can be used without pip
    print(
        f"Python {sys.version.split()[0]} ({sys.executable}) is too old for vgg_jax; take 3.11 or newer.",
        file=sys.stderr,
    )
    raise SystemExit(2)
