"""Checkpoints of the whole train state with Orbax: written asynchronously, published whole, latest and best kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from vgg_jax.errors import UserError
from vgg_jax.state import TrainState
from vgg_jax.workdir import CHECKPOINTS

_STATE, _PROGRESS = "state", "progress"


class Checkpoints:
    """The checkpoints of one run, `<workdir>/checkpoints/<step>/`.

    Each holds the train state and `progress`, a JSON object of what the run knows beside it (best error, seconds).
    The latest is kept, and the one of least validation top-1 error. A write that is cut off leaves a directory that
    is never taken for a checkpoint.
    """

    def __init__(self, workdir: Path):
        self._directory = (workdir / CHECKPOINTS).absolute()  # Orbax wants absolute paths
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(
                [
                    preservation_policy.LatestN(1),
                    preservation_policy.BestN(
                        n=1,
                        get_metric_fn=lambda metrics: metrics["top1_error"],
                        reverse=True,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options, item_names=(_STATE, _PROGRESS))

    def path(self, step: int) -> Path:
        return self._directory / str(step)

    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint; None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, progress: dict[str, Any], top1_error: float | None) -> None:
        """Starts to write a checkpoint; what is there already is left as it is.

        Args:
          step: updates made.
          state: copied before this returns, so its memory may be reused at once.
          progress: anything JSON holds.
          top1_error: of an evaluation at this very step, else None.

        Raises:
          UserError: this write, or the one before it, failed: disk full, no permission, ...
        """
        if step in self._manager.all_steps():
            return
        metrics = None if top1_error is None else {"top1_error": top1_error}
        args = ocp.args.Composite(**{_STATE: ocp.args.StandardSave(state), _PROGRESS: ocp.args.JsonSave(progress)})
        try:
            self._manager.save(step, args=args, metrics=metrics, force=True)
        except Exception as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Returns when everything is written; raises as `save`."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error

    def restore(self, step: int, shapes: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state, laid out as `shapes` (jax.ShapeDtypeStruct with shardings) says, and the progress of a step."""
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    **{_STATE: ocp.args.StandardRestore(shapes), _PROGRESS: ocp.args.JsonRestore()}
                ),
            )
        except Exception as error:
            raise UserError(
                f"the checkpoint {self.path(step)} cannot be read: {_first_line(error)} Remove it to go on from an "
                "earlier one, or choose another --workdir."
            ) from error
        return restored[_STATE], restored[_PROGRESS]

    def close(self) -> None:
        self._manager.close()

    def _failed(self, error: Exception) -> UserError:
        last = self._manager.latest_step()
        kept = "there is no earlier checkpoint" if last is None else f"the last good one is {self.path(last)}"
        return UserError(
            f"a checkpoint could not be written to {self._directory}: {_first_line(error)} Free some space or mend the "
            f"permissions and give the same command again; {kept}."
        )


def _best_step(directory: Path) -> int:
    """The step of least validation top-1 error, as the latest checkpoint remembers it."""
    with ocp.CheckpointManager(
        directory, options=ocp.CheckpointManagerOptions(read_only=True), item_names=(_STATE, _PROGRESS)
    ) as manager:
        latest = manager.latest_step()
        if latest is None:
            raise UserError(f"there is no finished checkpoint in {directory}.")
        try:
            args = ocp.args.Composite(**{_PROGRESS: ocp.args.JsonRestore()})
            progress = manager.restore(latest, args=args)[_PROGRESS]
        except Exception as error:
            raise UserError(f"the checkpoint {directory / str(latest)} cannot be read: {_first_line(error)}") from error
    return progress["best_step"] or latest


def _first_line(error: Exception) -> str:
    if "No space left on device" in str(error):  # the end of a very long line
        return "No space left on device."
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
    return (text[:300] + "...") if len(text) > 300 else text if text.endswith(".") else text + "."


def load_params(source: Path) -> tuple[Path, dict]:
    """Parameters alone, as NumPy arrays, of a checkpoint.

    Args:
      source: a run's workdir, which stands for its best checkpoint, or one of its checkpoints/<step>.

    Returns:
      The directory of the checkpoint that was read, and the parameters.

    Raises:
      UserError: there is no checkpoint, or it cannot be read.
    """
    source = source.absolute()
    if (source / CHECKPOINTS).is_dir():
        directory, step = source / CHECKPOINTS, None
    elif source.parent.name == CHECKPOINTS and source.name.isdigit():
        directory, step = source.parent, int(source.name)
    else:
        raise UserError(
            f"{source} is neither a run's workdir, with checkpoints/ in it, nor a checkpoints/<step> of one."
        )
    if step is None:
        step = _best_step(directory)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            tree = reader.metadata(directory / str(step) / _STATE).item_metadata.tree
            # Momentum stays on the disk.
            wanted = {"params": jax.tree.map(lambda _: 0, tree["params"])}
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            args = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
            state = reader.restore(directory / str(step) / _STATE, args=args)
    except Exception as error:
        raise UserError(f"the checkpoint {directory / str(step)} cannot be read: {_first_line(error)}") from error
    return directory / str(step), state["params"]
