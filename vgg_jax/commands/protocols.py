"""Flags of the test protocol, which `vgg-jax evaluate` and `vgg-jax predict` share."""

from __future__ import annotations

from absl.flags import disclaim_key_flags

from vgg_jax.commands.cli import Flags


def define(flags: Flags) -> None:
    """Defines --protocol, --scales, --exif, --batch_size and --dtype, which help lists with the caller's own flags."""
    disclaim_key_flags()
    flags.DEFINE_enum(
        "protocol",
        "dense",
        ["center_crop", "ten_crop", "dense", "multi_crop", "square_crop", "dense+multi_crop"],
        "What is averaged: one crop; corners and centre; the class score map of the whole image (Paper 3.2); 5 x 5 "
        "crops (Paper 4.3); the 144 crops of GoogLeNet; the map and 5 x 5 crops. All but center_crop also over the "
        "mirror image.",
    )
    flags.DEFINE_string(
        "scales",
        "",
        "Test scales Q, the shorter side in pixels: `single` (Q = S; the middle, for jitter), `multi` (S - 32, S, S + "
        "32 at crop 224; the ends and the middle, for jitter), or numbers: 256,384,512. Default: multi for multi_crop "
        "and square_crop, else single.",
    )
    flags.DEFINE_bool(
        "exif",
        None,
        "Turn images of files as their EXIF orientation says. Default: config.data.exif of the run.",
    )
    flags.DEFINE_integer(
        "batch_size",
        0,
        "Images of the crop's size that the model sees at once, over all devices; larger ones count for as much as "
        "they are larger. It bounds memory and changes no result. Default: 64 a device.",
        lower_bound=0,
    )
    flags.DEFINE_enum(
        "dtype", "", ["", "float32", "bfloat16"], "Dtype of the computation. Default: as the run was trained."
    )
