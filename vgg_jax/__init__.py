"""vgg_jax: "Very Deep Convolutional Networks for Large-Scale Image Recognition" (arXiv 1409.1556v6), reproduced in JAX.

    model = vgg_jax.load("torchvision:vgg16")
    probs = model.predict("photo.jpg")
    maps = vgg_jax.features.activations(model, images, ("relu3_3",))
    distance = vgg_jax.lpips(x, y)
    network, variables = vgg_jax.create_model("vgg16_bn", num_classes=10)
    summary = vgg_jax.fit("quickstart", "runs/quickstart")
    table = vgg_jax.evaluate_run("runs/quickstart")

Each name loads its module, and JAX, at its first use.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.5.0"

if sys.version_info < (3, 11):  # noqa: UP036, pip refuses it, but a clone can be used without pip
    print(
        f"Python {sys.version.split()[0]} ({sys.executable}) is too old for vgg_jax; take 3.11 or newer.",
        file=sys.stderr,
    )
    raise SystemExit(2)

if TYPE_CHECKING:
    from vgg_jax import features as features
    from vgg_jax.commands.experiments import evaluate_run as evaluate_run
    from vgg_jax.commands.experiments import fit as fit
    from vgg_jax.evaluation.model import Model as Model
    from vgg_jax.evaluation.model import load as load
    from vgg_jax.features import lpips as lpips
    from vgg_jax.models import create_model as create_model
    from vgg_jax.runtime.exceptions import UserError as UserError

# name -> its module; "" for a module of this name.
_MODULES = {
    "Model": "evaluation.model",
    "UserError": "runtime.exceptions",
    "create_model": "models",
    "evaluate_run": "commands.experiments",
    "features": "",
    "fit": "commands.experiments",
    "load": "evaluation.model",
    "lpips": "features",
}
__all__ = ["Model", "UserError", "create_model", "evaluate_run", "features", "fit", "load", "lpips"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES[name] or name}")
    # Found without this function from now on.
    globals()[name] = getattr(module, name) if _MODULES[name] else module
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
