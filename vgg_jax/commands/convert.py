"""`vgg-jax convert SOURCE DEST [flags]`: weights of other frameworks into this project's file, and out again.

    vgg-jax convert vgg16-397923af.pth vgg16.safetensors              torchvision's, timm's, Keras's or Caffe's
    vgg-jax convert runs/vgg16 vgg16.safetensors                      a run's best checkpoint
    vgg-jax convert vgg16.safetensors mine.safetensors --num_classes=10   the same body, a new head
    vgg-jax convert runs/vgg16 torch.safetensors --to=torchvision
    vgg-jax convert vgg16.safetensors vgg16.stablehlo --to=stablehlo
    vgg-jax convert vgg16.safetensors vgg16.onnx --to=onnx
    vgg-jax convert torchvision:vgg16 vgg16.safetensors               published weights by name, also keras:vgg16
    vgg-jax convert runs/vgg16 folder --to=hf                         a folder for the Hugging Face hub

The kind is told by the content. Names, shapes, dtypes and finiteness are checked, and no code of a file is ever run.
"""

from __future__ import annotations

from vgg_jax.commands import cli

flags = cli.Flags()
flags.DEFINE_enum(
    "to",
    "vgg_jax",
    ["vgg_jax", "torchvision", "keras", "onnx", "stablehlo", "hf"],
    "What to write: this project's file, torchvision's names (.safetensors), Keras 3's (.weights.h5), an ONNX graph, a "
    "program for jax.export, or a folder with a model card for the Hugging Face hub.",
)
flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float32", "float16"],
    "The numbers in this project's file: float16 takes half the space and keeps 11 bits of each. A model has float32.",
)
flags.DEFINE_string(
    "preprocessing",
    "",
    "What the model expects of pixels, where the file does not say: torchvision, caffe, mean_rgb, or "
    "ORDER:SCALE:MEAN:STD, as RGB:1:0.485,0.456,0.406:0.229,0.224,0.225.",
)
flags.DEFINE_string(
    "configuration",
    "",
    "The configuration of the paper that SOURCE is. Default: what its names and shapes say (A, where they would do for "
    "A-LRN as well).",
)
flags.DEFINE_string(
    "layers",
    "",
    "For a file with names of its own: patterns of the names of a trunk's convolutions, with commas between, as "
    "'block*'; in natural order they are conv1_1, conv1_2, ...",
)
flags.DEFINE_string("sha256", "", "What the SHA-256 of SOURCE must be, or at least its first eight digits.")
flags.DEFINE_string(
    "class_names",
    "",
    "A file with the names of the classes, one a line, in the model's order; or with lines as `n01440764 tench`; or "
    "imagenet: its 1,000 classes. Default: as known of SOURCE.",
)
flags.DEFINE_string(
    "training_scales",
    "",
    "S, the shorter side in pixels that the model was trained at: 256, or 256,512 for jitter. Default: as known of "
    "SOURCE, else 256 at crop 224.",
)
flags.DEFINE_integer(
    "num_classes", 0, "Keep the body, and replace the head by a random one for so many classes.", 0, 2**20
)
flags.DEFINE_string(
    "normalize_activations",
    "",
    "A directory of images over which each channel's mean activation becomes 1, as style transfer prefers; logits stay "
    "as they are.",
)
flags.DEFINE_integer("seed", 0, "Seed of the new head of --num_classes.", 0, 2**32 - 1)
flags.DEFINE_bool("overwrite", False, "Replace DEST where it exists.")


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        cli.fail(
            "give two names, from what and to what: vgg-jax convert vgg16-397923af.pth vgg16.safetensors; "
            "--help lists the flags."
        )
    cli.prefer_cpu()
    from vgg_jax.evaluation.conversion import ConvertRequest, convert

    convert(flags.request(ConvertRequest, source=arguments[0], dest=arguments[1]))
