"""Data sets that TFDS knows by name: found where they are prepared, else how to prepare them.

TFDS itself is imported only for a name under which nothing is prepared.
"""

from __future__ import annotations

import re
import shlex

from etils import epath

from vgg_jax.data import cifar, prepared
from vgg_jax.data.prepared import ARRAY_RECORD, Prepared
from vgg_jax.runtime.exceptions import UserError, did_you_mean, first_line, printable


def find(name: str, data_dir: epath.Path) -> Prepared:
    """Returns the data set of a TFDS name.

    Args:
      name: <name>[/<variant>][:<version>].
      data_dir: of prepared data.

    Raises:
      UserError: an unknown name, a set that is not prepared as ArrayRecord, or one that is not for image
        classification.
    """
    data = prepared.find(name, data_dir)
    if not data:
        # TFDS alone knows which sets there are, which variant of each it takes without a word, and which version.
        import tensorflow_datasets as tfds

        try:
            directory = epath.Path(tfds.builder(name, data_dir=data_dir).data_dir)
        except tfds.core.DatasetNotFoundError:
            known = ["builtin", "folder", *tfds.list_builders(with_community_datasets=False)]
            raise UserError(
                f"config.data.name is {name!r}, which is neither `builtin` nor `folder` nor a TFDS data set."
                + did_you_mean(name, known)
            ) from None
        except Exception as error:
            raise UserError(
                f"config.data.name is {name!r}, which TFDS cannot open: {printable(first_line(error)).rstrip('.')}; "
                "write NAME, NAME/VARIANT or NAME:VERSION."
            ) from error
        data = prepared.read(directory)
    if not data or data.file_format != ARRAY_RECORD:
        state = f"not prepared in {data_dir}"
        if data:
            state = f"prepared in {data_dir}, but as {data.file_format}, not ArrayRecord"
        elif others := prepared.versions(directory.parent):
            variant = "/".join(directory.relative_to(data_dir).parts[:-1])
            state = (
                f"in {data_dir} in another version than {directory.name}: --config.data.name={variant}:{others[-1]} "
                f"would take {'it' if len(others) == 1 else 'the last of ' + ', '.join(others)}"
            )
        raise UserError(
            f"the TFDS data set {name!r} is {state}. {_how_to_prepare(name, data_dir)}; or name another place with "
            "--config.data.dir=DIR."
        )
    if "image" not in data.features.get("image", {}) or "classLabel" not in data.features.get("label", {}):
        raise UserError(
            f"the TFDS data set {name!r} is no image classification set: it needs an `image` and a class `label`, and "
            f"has {', '.join(data.features)}."
        )
    return data


def _how_to_prepare(name: str, data_dir: epath.Path) -> str:
    """Returns the command that prepares a TFDS data set as ArrayRecord, in a sentence without its end."""
    if re.split("[:/]", name)[0] == "imagenet2012":
        return (
            "Prepare it from the tars of image-net.org: vgg-jax prepare imagenet2012 --tars=DIR "
            f"{shell_flag('data_dir', data_dir)}"
        )
    if name.split(":")[0] == cifar.NAME:
        return (
            "Prepare it from an archive of cs.toronto.edu/~kriz/cifar.html: vgg-jax prepare cifar10 "
            f"--data_root=cifar-10-python.tar.gz {shell_flag('data_dir', data_dir)}"
        )
    return (
        "Prepare it as ArrayRecord, in an environment of its own that has TensorFlow (pip install tensorflow "
        f"tensorflow-datasets): tfds build {shlex.quote(name)} --file_format=array_record "
        f"{shell_flag('data_dir', data_dir)}"
    )


def shell_flag(name: str, value: object) -> str:
    """Returns a flag quoted for a shell."""
    return f"--{name}={shlex.quote(str(value))}"
