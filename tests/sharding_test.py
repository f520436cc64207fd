"""Sharding is a table: what lies where, and that it changes nothing but that."""

from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from tests.first_steps import one_batch, some_steps
from vgg_jax.config import recipe_of
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.sharding import batch_sharding, bytes_a_device, local_rows, make_mesh
from vgg_jax.training.state import init_state, state_shapes


def shapes_for(config, devices=8):
    mesh = make_mesh(config.model_parallel, jax.devices()[:devices])
    return state_shapes(recipe_of(config), mesh)


def test_the_table(tiny_config):
    tiny_config.sharding = "fsdp"
    tiny_config.model.width_multiplier = 1 / 8
    shapes = shapes_for(tiny_config)
    assert shapes.params["conv2_1"]["kernel"].sharding.spec == PartitionSpec(None, None, None, "data")
    assert shapes.params["conv2_1"]["bias"].sharding.spec == PartitionSpec()
    assert shapes.params["fc8"]["kernel"].sharding.spec == PartitionSpec(None, None, "data", None)
    momentum = shapes.opt_state["momentum"].trace
    assert momentum["fc6"]["kernel"].sharding.spec == shapes.params["fc6"]["kernel"].sharding.spec
    assert shapes.step.sharding.spec == PartitionSpec()

    tiny_config.sharding, tiny_config.model_parallel = "fc_model_parallel", 4
    shapes = shapes_for(tiny_config)
    assert shapes.params["fc6"]["kernel"].sharding.spec == PartitionSpec(None, None, None, "model")
    assert shapes.params["fc6"]["kernel"].sharding.mesh.shape == {"data": 2, "model": 4}
    assert shapes.params["conv2_1"]["kernel"].sharding.spec == PartitionSpec()


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("TPU v5 lite", (4, 4, 1)),
        ("TPU v6 lite", (4, 4, 1)),
        ("TPU v6 lite", (16, 16, 1)),
        ("TPU v5", (2, 2, 4)),
        ("TPU v5", (4, 4, 8)),
    ],
)
def test_every_slice_has_a_mesh(kind, shape):
    """Axes of a slice are split where none of them is `model_parallel` long."""
    devices = [
        SimpleNamespace(
            platform="tpu", device_kind=kind, coords=at, core_on_chip=0, process_index=0, slice_index=0, id=i
        )
        for i, at in enumerate(np.ndindex(shape))
    ]
    with mock.patch("vgg_jax.runtime.sharding.Mesh", lambda grid, names, axis_types: grid):
        for model_parallel in (1, 2, 4, 8):
            grid = make_mesh(model_parallel, devices)
            assert grid.shape == (len(devices) // model_parallel, model_parallel)
            assert sorted(device.id for device in grid.flat) == list(range(len(devices)))


@pytest.mark.slow
def test_parameters_are_born_sharded_and_the_same(tiny_config):
    tiny_config.sharding = "fsdp"
    tiny_config.model.width_multiplier = 1 / 8
    alone = init_state(recipe_of(tiny_config), shapes_for(tiny_config, devices=1))
    split = init_state(recipe_of(tiny_config), shapes_for(tiny_config))
    kernel = split.params["fc6"]["kernel"]
    assert [shard.data.shape for shard in kernel.addressable_shards] == [(1, 1, 64, 2)] * 8
    jax.tree.map(np.testing.assert_array_equal, alone.params, split.params)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rules", "model_parallel"),
    [
        ("replicated", 1),
        ("fsdp", 1),
        ("fc_model_parallel", 2),
    ],
)
def test_eight_devices_are_one_device(tiny_config, rules, model_parallel):
    tiny_config.model.width_multiplier = 1 / 8
    one = some_steps(tiny_config, 5, devices=1)
    tiny_config.sharding, tiny_config.model_parallel = rules, model_parallel
    eight = some_steps(tiny_config, 5, devices=8)
    np.testing.assert_allclose(eight, one, rtol=1e-4)
    tiny_config.seed = 1
    assert np.abs(np.subtract(some_steps(tiny_config, 5, devices=8), one)).max() > 1e-3  # losses do tell runs apart


def test_a_batch_is_split_over_the_devices():
    mesh = make_mesh()
    image = jax.device_put(one_batch(16, 32)["image"], batch_sharding(mesh))
    assert [shard.data.shape[0] for shard in image.addressable_shards] == [2] * 8


def test_what_the_devices_do_not_divide_is_named(tiny_config):
    tiny_config.sharding, tiny_config.model_parallel, tiny_config.model.fc_width = "fc_model_parallel", 8, 12
    with pytest.raises(UserError, match=r"fc_model_parallel splits .*fc6/bias \[12\] over 8 devices, which do not"):
        shapes_for(tiny_config)


def test_fsdp_leaves_whole_what_the_devices_do_not_divide(tiny_config):
    tiny_config.sharding = "fsdp"
    tiny_config.model.width_multiplier = 1 / 16
    kernels = {name: layer["kernel"].sharding.spec for name, layer in shapes_for(tiny_config).params.items()}
    assert kernels["conv1_1"] == PartitionSpec()  # of 4 filters over 8 devices
    assert kernels["conv2_1"] == PartitionSpec(None, None, None, "data")  # of 8


def test_processes_read_the_rows_of_their_devices():
    devices = np.array(jax.devices())
    for shape, mine, rows in [
        ((8, 1), [2, 3], [4, 5, 6, 7]),
        ((4, 2), [2, 3], [4, 5, 6, 7]),  # both of one row of the mesh: the same images
        ((2, 4), [2, 3], range(8)),  # and so have the processes of devices 0 and 1
    ]:
        mesh = Mesh(devices.reshape(shape), ("data", "model"))
        of_all = batch_sharding(mesh).devices_indices_map((16,))
        here = mock.Mock(
            **{"addressable_devices_indices_map.return_value": {devices[i]: of_all[devices[i]] for i in mine}}
        )
        with mock.patch("vgg_jax.runtime.sharding.batch_sharding", return_value=here):
            assert list(local_rows(mesh, 16)) == list(rows)


def test_bytes_a_device(tiny_config):
    tiny_config.model.width_multiplier, tiny_config.model.fc_width = 1 / 8, 64
    alone = bytes_a_device(shapes_for(tiny_config, devices=1))
    assert bytes_a_device(shapes_for(tiny_config)) == alone
    tiny_config.sharding = "fsdp"
    shapes = shapes_for(tiny_config)
    kernels = sum(4 * layer["kernel"].size for layer in shapes.params.values())  # bytes; momentum has as many
    assert bytes_a_device(shapes) == alone - 2 * kernels * 7 // 8
    placed = init_state(recipe_of(tiny_config), shapes)
    on_first = sum(array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(placed))
    assert on_first == bytes_a_device(shapes)
