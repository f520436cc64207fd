"""Names that wrappers, other libraries and other heads give torch's models, rewritten as torchvision names them."""

from __future__ import annotations

import re

import numpy as np

from vgg_jax.weights.tensors import Tensor, TensorFile, short

Tensors = dict[str, Tensor]
# What wrappers of modules put before every name: torch's DataParallel, of the whole or of `features`, and compile, ...
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.")
# Number of averaged models in torch.optim.swa_utils.AveragedModel.
_AVERAGED_MODEL = "n_averaged"
# `Sequential(*list(resnet.children())[:-1])`; children 2 and 3 are the ReLU and the pooling.
_CHILDREN = {"0": "conv1", "1": "bn1"} | {str(i + 3): f"layer{i}" for i in range(1, 5)}
_TRANSFORMERS = (
    (r"(?:resnet\.)?embedder\.embedder\.", "_stem."),
    (r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.", lambda m: f"layer{int(m[1]) + 1}."),
    (r"_stem\.convolution\.", "conv1."),
    (r"_stem\.normalization\.", "bn1."),
    (r"(layer\d\.\d+\.)layer\.(\d+)\.convolution\.", lambda m: f"{m[1]}conv{int(m[2]) + 1}."),
    (r"(layer\d\.\d+\.)layer\.(\d+)\.normalization\.", lambda m: f"{m[1]}bn{int(m[2]) + 1}."),
    (r"(layer\d\.\d+\.)shortcut\.convolution\.", r"\1downsample.0."),
    (r"(layer\d\.\d+\.)shortcut\.normalization\.", r"\1downsample.1."),
)
# Of CIFAR's ResNets, as they are usually written.
_SHORTCUT = ((r"(layer\d\.\d+\.)shortcut\.(\d)\.", r"\1downsample.\2."),)
_RESNETS_TRUNK = re.compile(r"(conv1|bn1|layer\d)\.")


def as_torchvision_names(contents: TensorFile) -> TensorFile:
    """Returns a file's tensors by torchvision's names where they are known; `kind` then says what was rewritten."""
    tensors, remarks = _without_wrappers(contents.tensors)
    tensors, more = _with_resnets_names(tensors)
    return contents._replace(kind=", ".join([contents.kind, *remarks, *more]), tensors=tensors)


def _without_wrappers(tensors: Tensors) -> tuple[Tensors, list[str]]:
    remarks, dropped = [], ""
    if _AVERAGED_MODEL in tensors and all(name.startswith("module.") for name in tensors if name != _AVERAGED_MODEL):
        tensors = {name: tensor for name, tensor in tensors.items() if name != _AVERAGED_MODEL}
        remarks.append("a running average (AveragedModel)")
    while prefix := next((p for p in _PREFIXES if tensors and all(name.startswith(p) for name in tensors)), ""):
        tensors, dropped = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, dropped + prefix
    if tensors.keys() & {"4.0.conv1.weight", "features.4.0.conv1.weight"}:
        tensors = {re.sub(r"^(?:features\.)?(\d+)(?=\.)", _child, name): tensor for name, tensor in tensors.items()}
        remarks.append("children of a ResNet")
    elif tensors and all(re.match(r"\d+\.", name) for name in tensors):
        tensors = {f"features.{name}": tensor for name, tensor in tensors.items()}
        remarks.append("of `features` alone")
    inner = "features.module."
    if any(name.startswith(inner) for name in tensors):
        renamed = {re.sub("^features\\.module\\.", "features.", name): tensor for name, tensor in tensors.items()}
        if len(renamed) == len(tensors):
            tensors, dropped = renamed, dropped + inner
    return tensors, [*remarks, *([f"names without {dropped!r}"] if dropped else [])]


def _with_resnets_names(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """Returns a ResNet's tensors, its one FC layer as `fc`, and of any other head nothing, as of a trunk."""
    remarks: list[str] = []
    for replacements, remark in ((_TRANSFORMERS, "names of transformers"), (_SHORTCUT, "")):
        renamed = {_replaced(name, replacements): tensor for name, tensor in tensors.items()}
        if len(renamed) == len(tensors) and renamed.keys() != tensors.keys():
            tensors, remarks = renamed, [*remarks, *([remark] if remark else [])]
    if "conv1.weight" not in tensors or "layer1.0.conv1.weight" not in tensors:
        return tensors, remarks
    head = [name for name in tensors if not _RESNETS_TRUNK.match(name) and not name.endswith("num_batches_tracked")]
    kernels = [name for name in head if len(tensors[name].shape) == 2 and name.endswith(".weight")]
    if not kernels or any(len(tensors[name].shape) not in (1, 2) for name in head):
        return tensors, remarks
    trunk = {name: tensor for name, tensor in tensors.items() if _RESNETS_TRUNK.match(name)}
    bias = kernels[0].removesuffix("weight") + "bias"
    if not {kernels[0]} <= set(head) <= {kernels[0], bias}:
        shown = ", ".join(short(name) for name in head[:3]) + ", ..." * (len(head) > 3)
        return trunk, [*remarks, f"without its head ({shown}), which is not one FC layer"]
    if kernels[0] != "fc.weight":
        remarks.append(f"its head {short(kernels[0].removesuffix('.weight'))!r}")
    if bias not in tensors:
        remarks.append("zeros for its head's missing bias")
    kernel = tensors[kernels[0]]
    classes = kernel.shape[:1]
    zeros = Tensor(classes, kernel.dtype, lambda: np.zeros(classes, np.float32))
    return trunk | {"fc.weight": kernel, "fc.bias": tensors.get(bias, zeros)}, remarks


def _child(match: re.Match[str]) -> str:
    return _CHILDREN.get(match[1], match[0])


def _replaced(name: str, replacements: tuple) -> str:
    for pattern, replacement in replacements:
        name = re.sub(f"^{pattern}", replacement, name)
    return name
