"""Prepared data sets: ArrayRecord files laid out as TFDS lays them out, found, described and written without TFDS.

    <data_dir>/<name>[/<variant>]/<version>/dataset_info.json    the splits, and the number of records of each file
                                            features.json        what a record holds
                                            label.labels.txt     the names of the classes, in the order of the labels
                                            <name>-<split>.array_record-00000-of-00001
                                            image_digests.json   of what this package packed: see `image_digests`

So `tfds.builder` reads what this package writes, and this package reads what `tfds build` wrote; importing TFDS takes
seconds, and happens only where a name is asked for under which nothing is prepared.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from vgg_jax.data.disk import save_json, writable
from vgg_jax.data.parallel import parallel_map
from vgg_jax.data.records import WRITER_OPTIONS, Part, Record, Records, serialized
from vgg_jax.runtime.console import with_progress
from vgg_jax.runtime.exceptions import UserError, first_line, plain_name, quoted
from vgg_jax.runtime.files import write_directory, write_json

_INFO = "dataset_info.json"
_DIGESTS = "image_digests.json"
ARRAY_RECORD = "array_record"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_SHARD_BYTES = 1 << 28
# Bounds of what a description may claim, far beyond any data set.
_MOST_CLASSES, _MOST_RECORDS = 2**20, 2**40
_FEATURES = "tensorflow_datasets.core.features"


class Shard(NamedTuple):
    """One file of a split."""

    path: epath.Path
    num_records: int


class Prepared(NamedTuple):
    """A prepared data set."""

    directory: epath.Path
    name: str  # <name>[/<variant>]/<version>
    file_format: str  # array_record is the one that can be read here
    features: Mapping[str, Any]  # by name, as in features.json
    class_names: list[str]
    splits: dict[str, list[Shard]]

    def counts(self) -> dict[str, int]:
        """Records by split."""
        return {split: sum(shard.num_records for shard in shards) for split, shards in self.splits.items()}

    def parts(self, split: str) -> list[Part]:
        """Returns all records of a split, file by file."""
        return [Part(str(path), 0, count, count) for path, count in self.splits[split] if count]


def versions(directory: epath.Path) -> list[str]:
    """Returns the versions of a data set that are prepared in <data_dir>/<name>[/<variant>], the newest last."""
    if not directory.is_dir():
        return []
    names = [entry.name for entry in directory.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", entry.name)]
    return sorted(
        (name for name in names if (directory / name / _INFO).exists()), key=lambda name: [*map(int, name.split("."))]
    )


def find(name: str, data_dir: epath.Path) -> Prepared | None:
    """Returns what is prepared under <name>[/<variant>][:<version>]; of several versions the newest."""
    path, _, version = name.partition(":")
    if ".." in path.split("/"):
        return None
    directory = data_dir / path
    available = versions(directory)
    if version:
        available = [other for other in available if other == version]
    return read(directory / available[-1]) if available else None


def read(directory: epath.Path) -> Prepared | None:
    """Returns the data set in a directory; None where there is no complete one.

    Raises:
      UserError: its description is damaged.
    """
    if not (directory / _INFO).exists():
        return None
    try:
        info = json.loads((directory / _INFO).read_text())
        features = json.loads((directory / "features.json").read_text()).get("featuresDict", {}).get("features", {})
        return Prepared(
            directory,
            "/".join(part for part in (info["name"], info.get("configName"), info["version"]) if part),
            info.get("fileFormat", "tfrecord"),
            features,
            _class_names(directory, features),
            {split["name"]: _shards(directory, info, split) for split in info.get("splits", ())},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{directory} holds a data set whose description cannot be read ({type(error).__name__}: "
            f"{first_line(error)}) bring it back from a copy, or delete the directory and prepare the data again."
        ) from error


def _class_names(directory: epath.Path, features: Mapping[str, Any]) -> list[str]:
    names = directory / "label.labels.txt"
    if names.exists():
        return [plain_name(name) for name in names.read_text().rstrip("\n").split("\n")]
    label = features.get("label", {}).get("classLabel", {})
    return [str(number) for number in range(_bounded(label.get("numClasses", 0), _MOST_CLASSES))]


def _bounded(number: Any, most: int) -> int:
    if not 0 <= int(number) <= most:
        raise ValueError(f"a number of {quoted(int(number))}, beyond {most:,}")
    return int(number)


def _shards(directory: epath.Path, info: Mapping[str, Any], split: Mapping[str, Any]) -> list[Shard]:
    lengths = [_bounded(length, _MOST_RECORDS) for length in split.get("shardLengths", ())]
    template = split.get("filepathTemplate") or _TEMPLATE
    kind = info.get("fileFormat", "tfrecord")
    names = [_file(info["name"], split["name"], i, len(lengths), template, kind) for i in range(len(lengths))]
    return [Shard(directory / name, length) for name, length in zip(names, lengths, strict=True)]


def _file(
    name: str, split: str, index: int, count: int, template: str = _TEMPLATE, file_format: str = ARRAY_RECORD
) -> str:
    values = {
        "DATASET": name,
        "SPLIT": split,
        "FILEFORMAT": file_format,
        "SHARD_INDEX": f"{index:05d}",
        "NUM_SHARDS": f"{count:05d}",
        "SHARD_X_OF_Y": f"{index:05d}-of-{count:05d}",
    }
    # Not str.format, by which a template could ask for gigabytes of spaces.
    return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], template)


class ShardPlan(NamedTuple):
    """One file to write, and which records of its split go into it, in their order."""

    file: str
    members: np.ndarray


def plan_shards(name: str, split: str, order: np.ndarray, count: int) -> list[ShardPlan]:
    """Shares the records of a split out among `count` files of about as many each."""
    return [ShardPlan(_file(name, split, i, count), part) for i, part in enumerate(np.array_split(order, count))]


def write_shard(path: Path, records: Iterator[Record]) -> list[int]:
    """Writes one ArrayRecord file, and returns the bytes of each record."""
    writer, lengths = ArrayRecordWriter(str(path), WRITER_OPTIONS), []
    for record in records:
        content = serialized(record)
        writer.write(content)
        lengths.append(len(content))
    writer.close()
    return lengths


class Description(NamedTuple):
    """Description of a data set, for people and for TFDS."""

    name: str  # <name>[/<variant>]/<version>
    text: str  # for people
    class_names: Sequence[str]  # in the order of the labels
    encoding: str = ""  # "jpeg" or "png" where all images are of that kind


def write_description(
    directory: Path, description: Description, lengths: Mapping[str, Sequence[Sequence[int]]]
) -> None:
    """Makes a directory's ArrayRecord files a data set; `lengths` are the bytes of each record by split and file."""
    (base, *variant, version), class_names = description.name.split("/"), description.class_names
    image = {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8"}
    encoding = {"encodingFormat": description.encoding} if description.encoding else {}
    features = {
        "image": _feature("image_feature.Image", image=image | encoding),
        "label": _feature("class_label_feature.ClassLabel", classLabel={"numClasses": str(len(class_names))}),
        "file_name": _feature("text_feature.Text", text={}),
    }
    write_json(directory / "features.json", _feature("features_dict.FeaturesDict", featuresDict={"features": features}))
    (directory / "label.labels.txt").write_text("\n".join(class_names) + "\n")
    splits = [
        {
            "name": split,
            "shardLengths": [str(len(of_file)) for of_file in files],
            "numBytes": str(sum(map(sum, files))),
            "filepathTemplate": _TEMPLATE,
        }
        for split, files in lengths.items()
    ]
    info = {"name": base, "version": version, "description": description.text}
    info |= {"configName": variant[0]} if variant else {}
    write_json(directory / _INFO, info | {"fileFormat": ARRAY_RECORD, "splits": splits})


def _feature(kind: str, **content: Any) -> dict[str, Any]:
    return {"pythonClassName": f"{_FEATURES}.{kind}"} | content


class Entry(NamedTuple):
    """An image to be packed."""

    name: str  # of no other image of its split
    num_bytes: int  # about
    record: Callable[[], Record]


def image_digests(data: Prepared, splits: Iterable[str]) -> dict[str, str]:
    """Returns a digest of (class, file name, bytes) of all images, by split.

    It is the SHA-256 of the lines that `sha256sum CLASS/FILE` prints for a split's images, sorted. A copy of a folder
    has the same digests, whatever the times of its files. `pack` computes them. For data that version 0.4 packed they
    are computed once, from all records.
    """
    path, digests = data.directory / _DIGESTS, dict[str, str]()
    # Absent, or damaged: computed again.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        digests = {split: digest for split, digest in json.loads(path.read_text()).items() if isinstance(digest, str)}
    missing = [split for split in dict.fromkeys(splits) if split not in digests]
    for split in missing:
        records = Records(data.parts(split), f"{data.name}, {split}")
        lines = parallel_map(_digest_line, records)
        digests[split] = _digest(with_progress(lines, len(records), f"digest of {split} (once)"))
    if missing:
        save_json(path, digests)
    return {split: digests[split] for split in splits}


def _digest_line(record: Record) -> bytes:
    name = plain_name(record["file_name"].decode())
    return f"{hashlib.sha256(record['image']).hexdigest()}  {name}\n".encode()


def _made(entry: Entry) -> tuple[Record, bytes]:
    record = entry.record()
    return record, _digest_line(record)


def _without_lines(made: Iterable[tuple[Record, bytes]], lines: list[bytes]) -> Iterator[Record]:
    for record, line in made:
        lines.append(line)
        yield record


def _digest(lines: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(sorted(lines))).hexdigest()


def pack(final: epath.Path, description: Description, splits: Mapping[str, Sequence[Entry]]) -> Prepared:
    """Writes a data set into a directory that gets its name when it is whole; what an interruption leaves is removed.

    The records lie in the order that TFDS gives them, by a hash of their names: parts of a split mix the classes.
    """
    lengths: dict[str, list[list[int]]] = {split: [] for split in splits}
    digests: dict[str, str] = {}
    with writable(on_disk(final)), write_directory(on_disk(final), _is_prepared) as directory:
        for split, entries in splits.items():
            keys = [hashlib.md5((split + entry.name).encode(), usedforsecurity=False).digest() for entry in entries]
            order = np.array(sorted(range(len(keys)), key=keys.__getitem__), int)
            count = max(1, round(sum(entry.num_bytes for entry in entries) / _SHARD_BYTES))
            made = parallel_map(_made, (entries[index] for index in order))
            made = with_progress(made, len(entries), f"packing {split}")
            lines: list[bytes] = []
            with contextlib.closing(made):
                for shard in plan_shards(description.name.split("/")[0], split, order, count):
                    records = _without_lines(itertools.islice(made, len(shard.members)), lines)
                    lengths[split].append(write_shard(directory / shard.file, records))
            digests[split] = _digest(lines)
        write_json(directory / _DIGESTS, digests)
        write_description(directory, description, lengths)
    prepared = read(final)
    assert prepared is not None
    return prepared


def _is_prepared(directory: Path) -> bool:
    return (directory / _INFO).exists()


def on_disk(directory: epath.Path | str) -> Path:
    """Returns a directory in which data is to be prepared; raises UserError for one in a bucket."""
    if "://" in str(directory):
        raise UserError(f"{directory} is no directory of this machine; prepare on a disk, and copy the result.")
    return Path(directory)
