"""Sharding is a table: what lies where, and that it changes nothing but that."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests.steps_test import one_batch, some_steps
from vgg_jax.errors import UserError
from vgg_jax.optimizer import make_optimizer
from vgg_jax.sharding import batch_sharding, make_mesh
from vgg_jax.state import init_state, make_model, state_shapes


def shapes_for(config, devices=8):
    mesh = make_mesh(config.model_parallel, jax.devices()[:devices])
    return state_shapes(config, make_model(config), make_optimizer(config), mesh)


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


def test_parameters_are_born_sharded_and_the_same(tiny_config):
    optimizer, model = make_optimizer(tiny_config), make_model(tiny_config)
    alone = init_state(tiny_config, model, optimizer, shapes_for(tiny_config, devices=1))
    tiny_config.sharding = "fsdp"
    tiny_config.model.width_multiplier = 1 / 8
    model = make_model(tiny_config)
    alone = init_state(tiny_config, model, optimizer, shapes_for(tiny_config, devices=1))
    split = init_state(tiny_config, model, optimizer, shapes_for(tiny_config))
    kernel = split.params["fc6"]["kernel"]
    assert [shard.data.shape for shard in kernel.addressable_shards] == [(1, 1, 64, 2)] * 8
    jax.tree.map(np.testing.assert_array_equal, alone.params, split.params)


@pytest.mark.parametrize(("rules", "model_parallel"), [("replicated", 1), ("fsdp", 1), ("fc_model_parallel", 2)])
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
    tiny_config.sharding = "fsdp"
    tiny_config.model.width_multiplier = 1 / 16
    with pytest.raises(UserError, match=r"config.sharding=fsdp splits .*conv1_1/kernel \[3, 3, 3, 4\] over 8 devices"):
        shapes_for(tiny_config)
