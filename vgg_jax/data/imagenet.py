"""ImageNet (ILSVRC 2012) from the tars of image-net.org to ArrayRecord in TFDS's own layout, without TensorFlow.

Nothing is unpacked: the tars are indexed once, and images are read at their places in them, in an order that mixes
the classes, so that a part of a split (`train[:90%]`) is a fair sample. Shards are written one by one, so an
interrupted preparation continues with the next; the directory gets its final name only when it is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from vgg_jax.data.decode import check, decode, is_plain_jpeg
from vgg_jax.data.disk import SKIPPED, need_space, writable
from vgg_jax.data.image_kinds import DecodeError
from vgg_jax.data.imagenet_tars import ILSVRC2012, NAME, Edition, check_md5, find_tars
from vgg_jax.data.parallel import parallel_map
from vgg_jax.data.prepared import (
    ARRAY_RECORD,
    Description,
    Prepared,
    ShardPlan,
    plan_shards,
    read,
    write_description,
    write_shard,
)
from vgg_jax.data.records import Record
from vgg_jax.runtime.console import with_progress
from vgg_jax.runtime.exceptions import UserError, printable
from vgg_jax.runtime.files import write_atomically, write_json

_VERSION = "5.1.0"  # of TFDS's layout of it


class _Index(NamedTuple):
    """Positions of the images of a split in its tar."""

    names: np.ndarray  # [N] bytes
    labels: np.ndarray  # [N] int64; -1: none
    offsets: np.ndarray  # [N] int64, bytes from the start of the outer tar
    sizes: np.ndarray  # [N] int64, bytes


def prepare(
    tars: Path, data_dir: Path, md5: bool = False, skip_bad: bool = False, edition: Edition = ILSVRC2012
) -> Prepared:
    """Makes `<data_dir>/imagenet2012/<version>/`, or continues making it; does nothing where it is there.

    Every image is decoded once to find those that are bad. The few CMYK JPEGs and PNGs among them become RGB JPEGs,
    as in TFDS's own preparation; all others stay as they are, byte for byte.

    Args:
      tars: the directory with the files that `edition` names. Splits that are not required are made where their tar is.
      data_dir: where prepared data lies, on a disk.
      md5: check the tars' MD5 sums first (reads them once more).
      skip_bad: publish without the bad images, and list them in `skipped.json`, rather than stop.
      edition: what to expect in the tars.

    Returns:
      The prepared data.

    Raises:
      UserError: tars that are missing, cut short, renamed, unpacked or of another year; images or classes missing;
        bad images, each by name; no room; what lies in data_dir is something else.
    """
    final = data_dir / NAME / _VERSION
    if there := read(epath.Path(final)):
        if there.file_format != ARRAY_RECORD:
            raise UserError(
                f"{final} is prepared already, but as {there.file_format}, not ArrayRecord; give another --data_dir, "
                "or remove it."
            )
        return there
    if final.exists() and any(final.iterdir()):
        raise UserError(f"{final} holds something that is no prepared data set; remove it, or give another --data_dir.")

    paths = find_tars(tars, edition)
    if md5:
        check_md5(paths, edition)
    unfinished = final.with_name(final.name + ".unfinished")
    with writable(unfinished):
        (unfinished / "work").mkdir(parents=True, exist_ok=True)
        with _alone(unfinished / "work" / "lock"):
            _forget_other_tars(unfinished, paths)
            indices = {split: _index(split, path, edition, unfinished / "work") for split, path in paths.items()}
            plans = {split: _plans(split, index, edition) for split, index in indices.items()}
            _write_shards(unfinished, paths, indices, plans)
            reports = {split: [_report(unfinished, plan) for plan in of_split] for split, of_split in plans.items()}
            bad = {
                name: why for of_split in reports.values() for report in of_split for name, why in report["bad"].items()
            }
            if bad and not skip_bad:
                raise UserError(
                    f"{len(bad)} of {sum(len(i.names) for i in indices.values()):,} images are not sound. Nothing is "
                    "published, and what was done is kept: the same command with --skip_bad leaves them out, at once; "
                    "or "
                    "fetch the tars again.\n  " + "\n  ".join(f"{name}: {reason}" for name, reason in bad.items())
                )
            _publish(unfinished, final, reports, bad)
        shutil.rmtree(final / "work")
    prepared = read(epath.Path(final))
    assert prepared is not None
    return prepared


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Lets one preparation at a time work in a directory; a lock that a killed one left is free."""
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another preparation is at work in {lock.parent.parent}; wait for it, or stop it."
            ) from None
        yield


def _forget_other_tars(unfinished: Path, paths: dict[str, Path]) -> None:
    """Removes what an earlier attempt made of tars that have since changed."""
    record = unfinished / "work" / "tars.json"
    now = {split: [str(path), path.stat().st_size, path.stat().st_mtime_ns] for split, path in paths.items()}
    before = json.loads(record.read_text()) if record.exists() else {}
    for split in set(before) | set(now):
        if before.get(split) != now.get(split):
            for stale in (*unfinished.glob(f"{NAME}-{split}.*"), *(unfinished / "work").glob(f"*{split}*")):
                stale.unlink()
    write_json(record, now)


def _index(split: str, path: Path, edition: Edition, work: Path) -> _Index:
    """Indexes a tar, checks that nothing is missing or strange, and keeps the index for the next time."""
    path_of_index = work / f"index-{split}.npz"
    if path_of_index.exists():
        with (
            contextlib.suppress(OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile),
            np.load(path_of_index) as arrays,
        ):
            # Else damaged, and read again.
            return _Index(**arrays)
    expected = edition.splits[split]
    try:
        with tarfile.open(path, "r:") as tar:
            members = _train_members(tar, path, edition) if split == "train" else _flat_members(tar)
            rows = list(with_progress(members, expected.images, f"contents of {path.name}"))
    except tarfile.TarError as error:
        raise UserError(f"{path} cannot be read as a tar ({error}); download it again.") from error
    rows.sort()
    names, kinds = [name for name, *_ in rows], [wnid for _, wnid, *_ in rows]
    if split == "train" and (empty := sorted(set(edition.classes) - set(kinds))):
        raise UserError(f"{path} has no image of {len(empty)} of the {len(edition.classes)} classes: {_some(empty)}.")
    if len(names) != expected.images or len(set(names)) != len(names):
        raise UserError(
            f"{path} holds {len(set(names)):,} images, and {expected.images:,} are expected; it is cut short, or "
            "another year's."
        )
    if split == "validation":
        kinds = list(edition.validation_classes)
    label = {wnid: ILSVRC2012.classes.index(wnid) for wnid in edition.classes}
    index = _Index(
        np.array([name.encode() for name in names], "S"),
        np.array([label[kind] if kind else -1 for kind in kinds]),
        np.array([offset for *_, offset, _ in rows]),
        np.array([size for *_, size in rows]),
    )
    with write_atomically(path_of_index) as unfinished, open(unfinished, "wb") as file:
        np.savez(file, **index._asdict())
    return index


def _train_members(tar: tarfile.TarFile, path: Path, edition: Edition) -> Iterator[tuple[str, str, int, int]]:
    """Yields (name, WNID, offset, size) of the images in the tars in the tar."""
    inner_tars = tar.getmembers()
    if strange := [
        m.name for m in inner_tars if not m.name.endswith(".tar") or Path(m.name).stem not in edition.classes
    ]:
        raise UserError(
            f"{path} holds {_some(strange)}, and this year's holds nothing but a tar for each of "
            f"{len(edition.classes)} classes, as {edition.classes[0]}.tar: it is another year's, or not the "
            "classification task's."
        )
    for inner in inner_tars:
        with tarfile.open(fileobj=tar.extractfile(inner), mode="r:") as images:
            for name, _, offset, size in _flat_members(images):
                yield name, Path(inner.name).stem, inner.offset_data + offset, size


def _flat_members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, int, int]]:
    for member in tar:
        if member.isfile():
            yield printable(Path(member.name).name), "", member.offset_data, member.size


def _write_shards(
    unfinished: Path, paths: dict[str, Path], indices: dict[str, _Index], plans: dict[str, list[ShardPlan]]
) -> None:
    """Writes the shards that are not there yet, each with a report next to it in `work`."""
    missing = [
        (split, plan) for split, of in plans.items() for plan in of if not _report_path(unfinished, plan).exists()
    ]
    todo = [(split, i) for split, plan in missing for i in plan.members]
    need_space(unfinished, 1.01 * sum(float(indices[split].sizes[i]) for split, i in todo), "--config.data.dir=DIR")

    with contextlib.ExitStack() as files:
        tars = {split: files.enter_context(open(path, "rb")).fileno() for split, path in paths.items()}

        def fetch(position: tuple[str, int]) -> tuple[Record, str | None]:
            split, i = position
            index = indices[split]
            try:
                encoded = os.pread(tars[split], int(index.sizes[i]), int(index.offsets[i]))
            except OSError as error:
                raise UserError(f"{paths[split]} cannot be read: {error.strerror}.") from error
            record: Record = {"file_name": bytes(index.names[i]), "label": int(index.labels[i])}
            try:
                check(encoded)
                return record | {"image": encoded if is_plain_jpeg(encoded) else _as_rgb_jpeg(encoded)}, None
            except DecodeError as error:
                return record, str(error)

        total = sum(len(index.names) for index in indices.values())
        fetched = with_progress(parallel_map(fetch, todo), total, "checking and packing", done=total - len(todo))
        with contextlib.closing(fetched):
            for _, plan in missing:
                bad: dict[str, str] = {}
                being_written = unfinished / "work" / plan.file
                lengths = write_shard(being_written, _sound((next(fetched) for _ in plan.members), bad))
                if len(lengths) + len(bad) != len(plan.members):
                    raise RuntimeError(f"{plan.file} holds {len(lengths)} images of {len(plan.members)}")
                being_written.replace(unfinished / plan.file)
                write_json(_report_path(unfinished, plan), {"lengths": lengths, "bad": bad})


def _sound(fetched: Iterator[tuple[Record, str | None]], bad: dict[str, str]) -> Iterator[Record]:
    """Yields the records of sound images; adds the others' names and faults to `bad`."""
    for record, fault in fetched:
        if fault is None:
            yield record
        else:
            bad[record["file_name"].decode()] = fault


def _plans(split: str, index: _Index, edition: Edition) -> list[ShardPlan]:
    total = len(index.names)
    # RandomState, because NumPy promises that its streams never change: a resumed preparation needs the same order.
    order = np.random.RandomState(0).permutation(total)
    return plan_shards(NAME, split, order, min(edition.splits[split].shards, total))


def _report_path(unfinished: Path, plan: ShardPlan) -> Path:
    # Versions before 0.2 wrote .json, without lengths.
    return unfinished / "work" / f"{plan.file}.lengths.json"


def _report(unfinished: Path, plan: ShardPlan) -> dict:
    return json.loads(_report_path(unfinished, plan).read_text())


def _as_rgb_jpeg(encoded: bytes) -> bytes:
    file = io.BytesIO()
    Image.fromarray(decode(encoded)).save(file, "JPEG", quality=100, subsampling=0)
    return file.getvalue()


def _publish(unfinished: Path, final: Path, reports: dict[str, list[dict]], bad: dict[str, str]) -> None:
    """Adds the description of the shards, and gives the directory its name."""
    lengths = {split: [report["lengths"] for report in of_split] for split, of_split in reports.items()}
    text = "ILSVRC 2012, from the tars of image-net.org."
    write_description(unfinished, Description(f"{NAME}/{_VERSION}", text, ILSVRC2012.classes, "jpeg"), lengths)
    if bad:
        write_json(unfinished / SKIPPED, bad)
    if final.exists():
        final.rmdir()  # empty, as was seen at the start
    unfinished.rename(final)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
