"""A network and its options: the names that people know it by, the layers, and its form in configurations and files."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Self

from vgg_jax.models.description import Layers, resolve
from vgg_jax.models.predecessors import alexnet, googlenet
from vgg_jax.models.resnet import BOTTLENECK_STRIDES, CIFAR_DEPTHS, PLAIN_DEPTHS, SHORTCUTS, STAGES, resnet
from vgg_jax.models.vgg import HEADS, NO_HEAD, TABLE_1, vgg
from vgg_jax.runtime.exceptions import UserError, did_you_mean

CONFIGURATIONS = (
    *TABLE_1,
    *(f"ResNet-{depth}" for depth in (*STAGES, *CIFAR_DEPTHS)),
    *(f"Plain-{depth}" for depth in PLAIN_DEPTHS),
    "AlexNet",
    "GoogLeNet",
)
# Names of other libraries, in lower case -> `NetworkSpec.name`.
ALIASES = {
    "vgg11": "A",
    "vgg13": "B",
    "vgg16": "D",
    "vgg19": "E",
    "vgg11_bn": "A-BN",
    "vgg13_bn": "B-BN",
    "vgg16_bn": "D-BN",
    "vgg19_bn": "E-BN",
    **{f"resnet{depth}": f"ResNet-{depth}" for depth in (*STAGES, *CIFAR_DEPTHS)},
    "alexnet": "AlexNet",
    "googlenet": "GoogLeNet",
}
# Choices of `NetworkSpec`'s fields in a configuration; a trunk's head, NO_HEAD, is a file's alone.
CHOICES: dict[str, tuple[str, ...]] = {
    "configuration": CONFIGURATIONS,
    "head": HEADS,
    "shortcut": ("", *SHORTCUTS),
    "bottleneck_stride": BOTTLENECK_STRIDES,
}
_WITH_BOTTLENECKS = ("ResNet-50", "ResNet-101", "ResNet-152")


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """A network. The fields are the keys of the configuration's section `model` that decide its layers."""

    configuration: str = "D"  # one of CONFIGURATIONS
    batch_norm: bool = False  # of a VGG: after each convolution (Ioffe & Szegedy 2015)
    head: str = "fc"  # of a VGG: one of HEADS; NO_HEAD of a ResNet too, which then ends with its last map
    shortcut: str = ""  # of a ResNet: one of SHORTCUTS; "": the paper's, B, for CIFAR A
    bottleneck_stride: str = "3x3"  # of a ResNet from 50 layers up: one of BOTTLENECK_STRIDES
    auxiliary: bool = False  # of GoogLeNet: the classifiers in the middle (Szegedy et al. 2014, §5)

    @classmethod
    def parse(cls, name: str) -> NetworkSpec:
        """Returns the network of a name: "D-BN-GAP", "ResNet-50 (shortcut C)", "vgg16_bn", see `known_name`.

        Raises:
          UserError: an unknown name.
        """
        networks = _by_name()
        if (network := networks.get(known_name(name))) is None:
            raise UserError(
                f"{name!r} is no network.{did_you_mean(name, (*CONFIGURATIONS, *networks, *ALIASES))} There are "
                f"{', '.join(CONFIGURATIONS)}; a VGG may have -BN and -GAP behind its name; names such as vgg16_bn and "
                "resnet50 are known too."
            )
        return network

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Returns the network of a flat configuration, {"model.configuration": "D", ...}."""
        return cls(**{name: config[key] for name in NETWORK_KEYS if (key := f"model.{name}") in config})

    @classmethod
    def from_json(cls, configuration: str, options: Any) -> Self:
        """Returns the network that a weights file describes.

        Args:
          configuration: one of CONFIGURATIONS.
          options: of `to_json`.

        Raises:
          ValueError: an unknown option or value.
        """
        if not isinstance(options, dict) or not set(options) <= set(NETWORK_KEYS[1:]):
            raise ValueError(f"{options!r} is not a dictionary of {', '.join(NETWORK_KEYS[1:])}")
        network = cls(configuration, **options)
        network.check()
        return network

    def to_json(self) -> dict[str, Any]:
        """Returns the options that differ from the default's, {"batch_norm": True}; the paper's networks have none."""
        default = NetworkSpec(self.configuration)
        return {name: value for name, value in dataclasses.asdict(self).items() if value != getattr(default, name)}

    @property
    def name(self) -> str:
        """Returns the name: "D", "D-BN-GAP", "ResNet-50 (shortcut C)"."""
        if self.is_vgg:
            return f"{self.configuration}{'-BN' * self.batch_norm}{'-GAP' * (self.head == 'gap')}"
        options = [f"shortcut {self.shortcut}"] * bool(self.shortcut)
        options += ["stride in the 1x1"] * (self.bottleneck_stride == "1x1")
        return f"{self.configuration} ({', '.join(options)})" if options else self.configuration

    @property
    def title(self) -> str:
        """Returns the name with its family: "VGG D", "ResNet-50"."""
        return f"{'VGG ' * self.is_vgg}{self.name}"

    @property
    def is_vgg(self) -> bool:
        """Returns whether it is a network of the paper, or one with its convolutions."""
        return self.configuration in TABLE_1

    @property
    def is_plain(self) -> bool:
        """Returns whether it is a network of the paper, without batch normalisation and with its FC layers."""
        return self.is_vgg and not self.to_json()

    @property
    def is_resnet(self) -> bool:
        """Returns whether it is a residual network."""
        return self.configuration.startswith("ResNet-")

    @property
    def has_norms(self) -> bool:
        """Returns whether it has batch normalisation."""
        return any(layer.is_norm for layer in _description(self))

    @property
    def paper_crop(self) -> int:
        """Returns the height and width of the images that it was published for, pixels."""
        if self.configuration == "AlexNet":
            return 227
        return 32 if self.configuration.partition("-")[2] in map(str, CIFAR_DEPTHS) else 224

    def without_head(self) -> Self:
        """Returns the trunk."""
        return dataclasses.replace(self, head=NO_HEAD)

    def with_head(self) -> Self:
        """Returns the network of which it is the trunk; otherwise itself."""
        return dataclasses.replace(self, head=HEADS[0]) if self.head == NO_HEAD else self

    def layers(self, crop: int | None = None) -> Layers:
        """Returns the layers for training images of height and width `crop`, pixels; None: `paper_crop`.

        Raises:
          ValueError: an unknown configuration or value, or a crop too small for it.
        """
        return _layers(self, crop or self.paper_crop)

    def check(self) -> None:
        """Raises ValueError for an unknown configuration or value."""
        if self.configuration not in CONFIGURATIONS:
            raise ValueError(f"no configuration {self.configuration!r}; there are {', '.join(CONFIGURATIONS)}")
        for name, value in dataclasses.asdict(self).items():
            choices = (*CHOICES.get(name, (False, True)), *((NO_HEAD,) if name == "head" else ()))
            if value not in choices:
                raise ValueError(f"{value!r} must be one of {', '.join(map(repr, choices))}")

    def misplaced_options(self) -> Iterator[str]:
        """Yields a sentence for each option that the configuration does not have."""
        if (self.batch_norm or self.head != "fc") and not self.is_vgg:
            yield (
                f"config.model.batch_norm and config.model.head are for the VGGs, and {self.configuration} is none: "
                "its paper says what it has; leave them out."
            )
        if self.auxiliary and self.configuration != "GoogLeNet":
            yield (
                f"config.model.auxiliary is True, and {self.configuration} has no auxiliary classifiers; leave it out."
            )
        if self.shortcut and not self.is_resnet:
            yield (
                f"config.model.shortcut is {self.shortcut!r}, and {self.configuration} has no shortcuts; leave it out."
            )
        if self.bottleneck_stride != "3x3" and self.configuration not in _WITH_BOTTLENECKS:
            yield (
                f"config.model.bottleneck_stride is {self.bottleneck_stride!r}, and {self.configuration} has no "
                "bottlenecks, as a ResNet from 50 layers up has; leave it out."
            )


NETWORK_KEYS = tuple(
    field.name for field in dataclasses.fields(NetworkSpec)
)  # keys of the configuration's section `model`


@functools.cache
def _layers(network: NetworkSpec, crop: int) -> Layers:
    return resolve(_description(network), crop)


@functools.cache
def _description(network: NetworkSpec) -> Layers:
    """Returns the layers for any crop: the kernels of those that span a map are not known yet."""
    network.check()
    name = network.configuration
    if network.is_vgg:
        return vgg(TABLE_1[name], network.batch_norm, network.head)
    if name == "AlexNet":
        return alexnet()
    if name == "GoogLeNet":
        return googlenet(network.auxiliary)
    depth = int(name.partition("-")[2])
    layers = resnet(depth, network.is_resnet, network.shortcut, network.bottleneck_stride)
    return layers[:-2] if network.head == NO_HEAD else layers


def known_name(name: str) -> str:
    """Returns the network's name that a name stands for, or the same where none is known.

    Case, hyphens and underscores do not matter, and ALIASES are known: "VGG-16", "vgg16" and "d" are "D".
    """
    return _plain_names().get(_plain(name), name)


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


@functools.cache
def _plain_names() -> dict[str, str]:
    return {_plain(name): name for name in _by_name()} | {_plain(alias): name for alias, name in ALIASES.items()}


@functools.cache
def _by_name() -> dict[str, NetworkSpec]:
    """Returns every network whose options suit its configuration, by its name.

    Networks with auxiliary classifiers and trunks have no name.
    """
    choices: Iterator[Any] = itertools.product(*(CHOICES.get(name, (False, True)) for name in NETWORK_KEYS))
    networks = (NetworkSpec(**dict(zip(NETWORK_KEYS, choice, strict=True))) for choice in choices)
    return {
        network.name: network for network in networks if not (network.auxiliary or any(network.misplaced_options()))
    }
