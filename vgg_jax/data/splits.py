"""Split expressions as TFDS writes them: train, train[:90%], train[100:], train[:2shard], train+validation."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Mapping

from vgg_jax.data.prepared import Prepared
from vgg_jax.data.records import Part, Records
from vgg_jax.runtime.exceptions import UserError

# Where there is but one split.
SHARED_OUT = "--config.data.train_split='train[:90%]' and --config.data.val_split='train[90%:]'"
_NUMBER = r"(-?[\d_.]+)?(%|shard)?"
_SLICE = re.compile(rf"[\w-]+(?:\[{_NUMBER}(:){_NUMBER}\]|\[(\d+)shard\])?")


def open_split(data: Prepared, split: str, key: str) -> Records:
    """Opens the records of a split expression: train, train[:90%], train[100:], train[:2shard], train+validation.

    Raises:
      UserError: an expression that is none, or takes no record; `key` says in it where the expression came from.
    """
    name = data.name.split("/")[0]
    check_splits({key: split}, list(data.splits), name)
    parts = []
    for one in [*data.splits] if split.strip() == "all" else split.split("+"):
        begin, end = _range(one.strip(), data, key)
        for shard in data.splits[split_names(one)[0]]:
            skip, stop = max(begin, 0), min(end, shard.num_records)
            if skip < stop:
                parts.append(Part(os.fspath(shard.path), skip, stop - skip, shard.num_records))
            begin, end = begin - shard.num_records, end - shard.num_records
    if not parts:
        raise UserError(f"{key} is {split!r}, which takes no image of {name}; take more: --{key}={[*data.splits][-1]}.")
    return Records(parts, f"{data.name}, {split}")


def _range(expression: str, data: Prepared, key: str) -> tuple[int, int]:
    """Returns the first record of a split, or of a part of it, and the one after the last, rounded as TFDS does."""
    shards = data.splits.get(split_names(expression)[0], [])
    ends = [0, *itertools.accumulate(shard.num_records for shard in shards)]

    def boundary(text: str, unit: str, default: int) -> int:
        if not text:
            return default
        of = len(shards) if unit == "shard" else ends[-1]
        at = round(float(text) * of / 100) if unit == "%" else int(text)
        if abs(at) > of:
            raise UserError(
                f"{key} is {expression!r}, but {data.name} has {of:,} {'files' if unit == 'shard' else 'records'} of "
                "that split; take fewer."
            )
        at = at + of if at < 0 else at
        return ends[at] if unit == "shard" else at

    try:
        match = _SLICE.fullmatch(expression)
        if not shards or not match:
            raise ValueError
        first, unit_of_first, colon, last, unit_of_last, one = match.groups("")
        if one:
            return boundary(one, "shard", 0), boundary(str(int(one) + 1), "shard", 0)
        if colon and not first + last:
            raise ValueError
        unit = unit_of_first or unit_of_last
        return boundary(first, unit, 0), boundary(last, unit, ends[-1])
    except ValueError:
        raise UserError(
            f"{key} is {expression!r}, which is no split or part of one; write train, train[:90%], train[1000:] or "
            "train+validation."
        ) from None


def split_names(split: str) -> list[str]:
    """Returns the splits in a TFDS expression, as train[:90%]+test."""
    return [re.split(r"[^\w-]", part.strip())[0] for part in split.split("+")]


def check_splits(splits: Mapping[str, str], known: list[str], owner: str) -> None:
    """Raises UserError where an expression, by the key that it comes from, names another split than the known ones."""
    for key, split in splits.items():
        if set(split_names(split)) <= {*known, "all"}:
            continue
        taken = {name for other in splits.keys() - {key} for name in split_names(splits[other])}
        free = [name for name in known if name not in taken] or known
        nearest = difflib.get_close_matches(split, free, 1, 0.4) or free[-1:]
        advice = SHARED_OUT if known == ["train"] and key.startswith("config.data") else f"--{key}={nearest[0]}"
        raise UserError(
            f"{key} is {split!r}, which {owner} does not have; its splits are {', '.join(known)} (or parts of them, as "
            f"{known[0]}[:90%]): {advice}."
        )
