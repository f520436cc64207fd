"""Checkpoints of the whole train state with Orbax: written asynchronously, published whole, checked when read."""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from vgg_jax.runs import RunDir
from vgg_jax.runtime import distributed
from vgg_jax.runtime.console import print_error
from vgg_jax.runtime.digests import checksum, leaf_names
from vgg_jax.runtime.exceptions import UserError, as_user_error, first_line
from vgg_jax.training.schedules import Plateau
from vgg_jax.training.state import TrainState
from vgg_jax.training.state_layout import has_old_averages, to_state, to_tree, to_variables, variables_part

_STATE, _PROGRESS = "state", "progress"
_LEAST_SLICE = 2**24  # bytes of an array that one of several devices writes
_CHECKSUMS = "checksums"  # key in the saved progress: of the state's arrays by name, and of the progress itself
_DAMAGED = ".damaged"  # suffix of a checkpoint that was set aside


@dataclasses.dataclass
class Progress:
    """Host-side state of a run; a checkpoint holds it as JSON."""

    seconds: float = 0.0  # of the run so far
    best_top1_error: float | None = None
    best_step: int | None = None
    last: dict[str, float] | None = None  # the last evaluation
    plateau: Plateau = dataclasses.field(default_factory=Plateau)
    sums: dict[str, dict[str, float]] | None = None  # of `metrics.TrainMetrics`
    is_warm: bool = False  # whether the training error has been below `schedule.warmup_error`
    starts: int = 0
    startup_seconds: float = 0.0  # of `seconds`, from each start to its first step taken
    last_step: int | None = None  # of `last`; None in checkpoints of earlier versions
    train_loss: float | None = None  # mean before the last evaluation; None in checkpoints of earlier versions
    best_loss: float | None = None  # of `best_step`, which decides ties; None in checkpoints of earlier versions

    def observe(self, step: int, validation: dict[str, float]) -> None:
        """Takes a validation as the last, and as the best where its error is less, or is equal with less loss.

        Args:
          step: of the validation.
          validation: top1_error (fraction), loss (nats) and others, all finite.
        """
        error, loss = validation["top1_error"], validation["loss"]
        if self.best_top1_error is None or (error, loss) < (self.best_top1_error, self.best_loss or 0.0):
            self.best_top1_error, self.best_loss, self.best_step = error, loss, step
        self.last, self.last_step = validation, step


class Restored(NamedTuple):
    """A checkpoint as it was read."""

    step: int
    state: TrainState
    progress: Progress
    warnings: list[str]  # a sentence for each newer checkpoint that is damaged


class _LatestAndBest(preservation_policy.PreservationPolicy):
    """Preserves the latest checkpoint and the one that `best_step` names.

    The step is told at every save, because Orbax forgets metrics when the directory is opened again.
    """

    best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        return [info is checkpoints[-1] or info.step == self.best_step for info in checkpoints]


class Checkpoints:
    """The checkpoints of one run, `<workdir>/checkpoints/<step>/`.

    Each holds the train state, the progress and checksums of both. The latest is preserved, and the one that
    `progress.best_step` names. A write that is cut off leaves a directory that is never taken for a checkpoint.
    """

    def __init__(self, workdir: Path):
        self._run = RunDir(workdir.absolute())  # Orbax needs absolute paths
        self._directory = self._run.checkpoints
        self._policy = _LatestAndBest()
        options = ocp.CheckpointManagerOptions(preservation_policy=self._policy)
        # Devices that hold the same array share the work only where it is large: each slice is a program to compile.
        arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_LEAST_SLICE)
        registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
        handlers = {
            _STATE: ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
            _PROGRESS: ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)

    def path(self, step: int) -> Path:
        return self._directory / str(step)

    def steps(self) -> list[int]:
        """Steps of all whole checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, progress: Progress) -> None:
        """Starts to write a checkpoint; an existing one is left as it is.

        Args:
          step: updates made.
          state: copied before this returns, so its memory may be reused at once.
          progress: its `best_step` names the other checkpoint that is preserved.

        Raises:
          UserError: this write, or the one before it, failed: disk full, no permission, ...
        """
        if step in self._manager.all_steps():
            return
        self._policy.best_step = progress.best_step
        content = dataclasses.asdict(progress)
        tree = to_tree(state)
        content |= {_CHECKSUMS: {**_tree_checksums(tree), _PROGRESS: _sha256(content)}}
        args = ocp.args.Composite(**{_STATE: ocp.args.PyTreeSave(tree), _PROGRESS: ocp.args.JsonSave(content)})
        try:
            self._manager.save(step, args=args, force=True)
        except Exception as error:
            if distributed.peer_is_lost(error):
                raise
            raise self._write_failed(error) from error

    def check(self) -> None:
        """Raises as `save` where the last write has failed; waits for nothing."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when everything is written; raises as `save`."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            if distributed.peer_is_lost(error):
                raise
            raise self._write_failed(error) from error

    def restore(self, shapes: TrainState) -> Restored | None:
        """Reads the newest sound checkpoint; newer ones that are damaged are renamed to `<step>.damaged`.

        Args:
          shapes: jax.ShapeDtypeStruct with the shardings that the state shall have.

        Returns:
          None where there is no checkpoint.

        Raises:
          UserError: all checkpoints are damaged, or an earlier version wrote them; they stay unchanged.
        """
        damaged: dict[int, Exception] = {}
        for step in reversed(self.steps()):
            restored = None
            try:
                restored = self._restore(step, shapes)
            except Exception as error:
                _raise_unless_damaged(error)
                damaged[step] = error
            if distributed.all_agree(restored is not None):
                assert restored is not None
                return Restored(step, *restored, [self._set_aside(bad, error) for bad, error in damaged.items()])
            damaged.setdefault(step, ValueError("Another process could not read it."))
        if not damaged:
            return None
        newest = max(damaged)
        raise UserError(
            f"the checkpoint {self.path(newest)} cannot be read, and there is no older one that can: "
            f"{first_line(damaged[newest])} Choose another --workdir, or remove {self._directory} to start again."
        ) from damaged[newest]

    def close(self) -> None:
        self._manager.close()

    def _restore(self, step: int, shapes: TrainState) -> tuple[TrainState, Progress]:
        content, checksums = _read_progress(self.path(step))
        if "plateau" not in content:
            raise UserError(
                f"the checkpoint {self.path(step)} was written by vgg_jax 0.2 or older and cannot be continued; finish "
                "the run with that version, or start a new --workdir from it with "
                f"--config.init_from={self.path(step)}."
            )
        if not checksums:
            raise ValueError("It has no checksums.")
        item = to_tree(shapes, has_old_averages(checksums))
        restore_args = ocp.checkpoint_utils.construct_restore_args(item)
        args = ocp.args.Composite(**{_STATE: ocp.args.PyTreeRestore(item, restore_args=restore_args)})
        tree = self._manager.restore(step, args=args)[_STATE]
        _compare(_tree_checksums(tree), checksums)
        return to_state(tree), Progress(**content | {"plateau": Plateau(**content["plateau"])})

    def _set_aside(self, step: int, error: Exception) -> str:
        path = self.path(step)
        names = (f"{path.name}{_DAMAGED}{f'-{i}' if i > 1 else ''}" for i in itertools.count(1))
        aside = next(other for other in map(path.with_name, names) if not other.exists())
        if distributed.is_primary():
            path.rename(aside)
        distributed.wait_for_all()
        self._manager.reload()
        return f"the checkpoint {path} is damaged and now called {aside.name}: {first_line(error)}"

    def _write_failed(self, error: Exception) -> UserError:
        # Orbax has already forgotten those that it would have removed after this one.
        steps = self._run.checkpoint_steps()
        remaining = f"the last good one is {self.path(steps[-1])}" if steps else "there is no earlier checkpoint"
        return UserError(
            f"a checkpoint could not be written to {self._directory}: {first_line(error)} Free some space or mend the "
            f"permissions and give the same command again; {remaining}."
        )


def load_variables(source: Path, averages: bool = True) -> tuple[Path, dict]:
    """Reads a checkpoint's variables without the optimizer's state, as NumPy arrays.

    Args:
      source: a run's workdir, which stands for its best checkpoint (the newest sound one where that is damaged, with a
        warning), or one of its checkpoints/<step>.
      averages: where the run averaged its variables, read the averages, in place of those of the last update.

    Returns:
      The directory of the checkpoint that was read, and the first argument of `model.apply`.

    Raises:
      UserError: there is no such checkpoint (the sentence names those that are), or it is damaged.
    """
    source = source.absolute()
    run = RunDir.containing(source)
    directory, is_workdir = run.checkpoints, run.path == source
    if not directory.is_dir() or not (is_workdir or source.name.isdigit()):
        raise UserError(
            f"{source} is neither a run's workdir, with checkpoints/ in it, nor a checkpoints/<step> of one."
        )
    step = None if is_workdir else int(source.name)
    steps = run.checkpoint_steps()
    if not steps:
        raise UserError(f"there is no finished checkpoint in {directory}.")
    first = _best_step(directory, steps) if step is None else step
    if first not in steps:
        raise UserError(
            f"the {'best ' if step is None else ''}checkpoint {directory / str(first)} is not there; there are "
            f"{', '.join(map(str, steps))}: name one of them, as {directory / str(steps[-1])}."
        )
    others = [] if step is not None else [other for other in reversed(steps) if other != first]
    errors: list[str] = []
    for candidate in (first, *others):
        path = directory / str(candidate)
        try:
            variables = _read_variables(path, averages)
        except Exception as error:
            _raise_unless_damaged(error)
            errors.append(f"the checkpoint {path} cannot be read: {first_line(error)}")
        else:
            for sentence in errors:
                print_error(f"WARNING: {sentence} {path} takes its place.")
            return path, variables
    raise UserError(errors[0])


def _read_variables(path: Path, averages: bool) -> dict:
    _, checksums = _read_progress(path)
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler) as reader:
        # `reader.metadata` logs a warning: it looks for metadata of a whole checkpoint here too.
        try:
            tree = handler.metadata(path / _STATE).tree
        except (FileNotFoundError, NotImplementedError, TypeError, ValueError) as error:
            raise ValueError(f"{path / _STATE} is empty or damaged.") from error
        # Momentum stays on the disk.
        item = jax.tree.map(lambda _: 0, variables_part(tree, averages))
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=as_numpy, partial_restore=True)
        state = reader.restore(path / _STATE, args=args)
    if checksums:
        _compare({name: int(checksum(leaf, np)) for name, leaf in leaf_names(state).items()}, checksums)
    return to_variables(state)


def _best_step(directory: Path, steps: list[int]) -> int:
    """Returns the step of least validation top-1 error, by the newest readable checkpoint."""
    for step in reversed(steps):
        try:
            progress, _ = _read_progress(directory / str(step))
        except Exception as error:
            _raise_unless_damaged(error)
            continue  # reading its parameters says why
        return progress.get("best_step") or step
    return steps[-1]


def _raise_unless_damaged(error: Exception) -> None:
    """Raises an error of the disk or the memory again: the checkpoint may be sound, and the next start may read it."""
    of_disk = isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    if of_disk or (not isinstance(error, OSError) and as_user_error(error)):
        raise error


def _read_progress(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        return _verified_progress(reader.restore(path / _PROGRESS))


def _verified_progress(content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits what was saved into progress and checksums; ValueError where the progress is not what was saved."""
    progress = {key: value for key, value in content.items() if key != _CHECKSUMS}
    checksums = content.get(_CHECKSUMS, {})
    if checksums:
        _compare({_PROGRESS: _sha256(progress)}, checksums)
    return progress, checksums


def _compare(actual: dict[str, Any], saved: dict[str, Any]) -> None:
    different = [name for name, value in actual.items() if saved.get(name) != value]
    if different:
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise ValueError(f"{different[0]}{more} is not what was saved, by its checksum.")


def _sha256(progress: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(progress, sort_keys=True).encode()).hexdigest()


def _tree_checksums(tree: dict[str, Any]) -> dict[str, int]:
    return {name: int(value) for name, value in leaf_names(jax.device_get(_on_devices(tree))).items()}


@functools.partial(jax.jit)
def _on_devices(tree: dict[str, Any]) -> dict[str, Any]:
    """Checksums where the arrays lie: nothing is gathered, and the result does not depend on the sharding."""
    return jax.tree.map(checksum, tree)
