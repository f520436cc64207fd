"""Evaluations in tests: requests, cached probabilities, and the tolerance of comparisons."""

import numpy as np

from vgg_jax.evaluation.cache import Probs
from vgg_jax.evaluation.protocol import Request


def request(*runs, **options):
    return Request(workdirs=tuple(map(str, runs)), **options)


def kept(run, name):
    """What is kept of a view, in the order of file names; a prepared folder has an order of its own."""
    (file,) = run.glob(f"evaluation/7/{name}.npz")
    with np.load(file) as arrays:
        order = np.argsort(arrays["keys"])
        return {name: arrays[name][order] for name in Probs._fields}


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
