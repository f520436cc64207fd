"""Buckets, batches and tiles: against brute force, and every image and every column once."""

import itertools

import jax
import numpy as np
import pytest

from tests.networks import COLUMNS, PUBLISHED, shapes_of
from vgg_jax.evaluation.passes import EvalPass
from vgg_jax.evaluation.plan import Devices, bucket_lengths, buckets, geometry_of, macs, plan_pass, tile_length, tiles
from vgg_jax.models import NetworkSpec, make_network
from vgg_jax.models.vgg import TABLE_1


@pytest.mark.parametrize("name", PUBLISHED)
def test_multiplications_are_the_papers(name):
    assert macs(
        geometry_of(NetworkSpec(name).layers(), shapes_of(make_network(name))), 224, 224
    ) / 1e9 == pytest.approx(PUBLISHED[name][2], abs=0.006)


def test_multiplications_of_a_map_larger_than_one_place():
    # Counted from the shapes of every layer's result: outputs times the kernel's connections into each.
    model, count = make_network("D", num_classes=5, width_multiplier=1 / 16, fc_width=24, crop=64), 0
    params = shapes_of(model)
    names = [f"relu{i}_{j}" for i, depth in enumerate((2, 2, 3, 3, 3), 1) for j in range(1, depth + 1)]
    wanted = (*names, "relu6", "relu7", "score_map")
    image = jax.ShapeDtypeStruct((1, 100, 163, 3), np.float32)
    _, maps = jax.eval_shape(lambda v, x: model.apply(v, x, endpoints=wanted), {"params": params}, image)
    layers = [name.replace("relu", "conv") for name in names] + ["fc6", "fc7", "fc8"]
    for layer, array in zip(layers, (maps[name] for name in wanted), strict=True):
        count += array.size * params[layer]["kernel"].size // array.shape[-1]
    assert macs(geometry_of(NetworkSpec("D").layers(64), params), 100, 163) == count


def test_frames_are_the_best_there_are():
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths = rng.integers(64, 200, 30)
        unique = np.unique(lengths)

        def padded(frames, lengths=lengths):
            return sum(min(f for f in frames if f >= length) ** 2 for length in lengths)

        for most in (1, 2, 3):
            best = min(padded(choice) for choice in itertools.combinations(unique, most) if choice[-1] == unique[-1])
            found = bucket_lengths(lengths, lambda length: length**2, most)
            assert len(found) == most
            assert padded(found) == best
    # No more frames than are needed to come within 2 %.
    assert bucket_lengths(np.array([100, 101]), lambda length: length) == [101]
    assert bucket_lengths(np.array([100, 150]), lambda length: length) == [100, 150]
    # Nor one that saves less than it costs: 100 images that are 50 pixels shorter save 5,000.
    lengths = np.repeat([100, 150], 100)
    assert bucket_lengths(lengths, lambda length: length, overhead=4_999) == [100, 150]
    assert bucket_lengths(lengths, lambda length: length, overhead=5_001) == [150]


@pytest.mark.parametrize("count", [1, 2, 31, 300])
def test_a_plan_holds_every_picture_once_and_wastes_slots_only_at_its_ends(count):
    rng = np.random.default_rng(count)
    long, upright = rng.integers(70, 250, 400), rng.random(400) < 0.3
    sizes = np.where(upright[:, None], np.stack([long, np.full(400, 70)], 1), np.stack([np.full(400, 70), long], 1))
    wanted = rng.permutation(400)[:count]
    batches = buckets(sizes, wanted, lambda length: length, lambda length: 2000 // length)
    assert sorted(np.concatenate([b.indices for b in batches])) == sorted(wanted)
    assert len({b.shape for b in batches}) <= 8
    empty = {False: [], True: []}
    for batch in batches:
        assert batch.shape[0] == 70
        assert batch.batch_size == 2000 // batch.shape[1]
        assert long[batch.indices].max() <= batch.shape[1]
        assert (upright[batch.indices] & (long[batch.indices] > 70) == batch.transposed).all()
        empty[batch.transposed].append(batch.batch_size - len(batch.indices))
    for slots in empty.values():
        assert not any(slots[:-1])
    assert buckets(sizes, wanted[:0], lambda length: length, lambda length: 8) == []


@pytest.mark.parametrize(("count", "most"), [(1, 1), (12, 13), (100, 113), (6400, 6700)])
@pytest.mark.parametrize("method", ["center_crop", "ten_crop", "multi_crop", "dense"])
def test_few_images_have_few_empty_slots_and_many_large_batches(method, count, most):
    network = geometry_of(NetworkSpec("D").layers(), shapes_of(make_network("D")))
    sizes = np.tile([(500, 375)] * 5 + [(375, 500)], (1067, 1))[:count]
    jobs = plan_pass(EvalPass(method, 256, 224, True), network, sizes, np.arange(count), 512, Devices(1))
    assert sorted(np.concatenate([job.bucket.indices for job in jobs])) == list(range(count))
    assert sum(job.bucket.batch_size for job in jobs) <= most
    largest = {"center_crop": 256, "ten_crop": 51, "multi_crop": 10, "dense": 512 * 224**2 // (2 * 256 * 341)}[method]
    assert max(job.bucket.batch_size for job in jobs) == largest or count < 6400


def test_a_long_image_has_no_more_crops_computed_than_its_own():
    network = geometry_of(NetworkSpec("D").layers(), shapes_of(make_network("D")))
    (job,) = plan_pass(
        EvalPass("multi_crop", 256, 224, True), network, np.array([(4000, 300)]), np.arange(1), 512, Devices(1)
    )
    assert (job.kind, job.macs) == ("host_grid", job.needed)


@pytest.mark.parametrize("name", TABLE_1)
@pytest.mark.parametrize("crop", [64, 224])
def test_strips_keep_every_column_once_and_see_no_cut(name, crop):
    network = geometry_of(
        NetworkSpec(name).layers(crop), shapes_of(make_network(name, width_multiplier=1 / 16, fc_width=8, crop=crop))
    )
    kernel, strip = crop // 32, tile_length(network, crop + 10)
    assert strip % 32 == 0
    # Pixels that a column of the score map sees: by summing the reach of every convolution.
    blocks = COLUMNS[name].split("M")
    reach = sum((int(item[0]) - 1) // 2 * 2**i for i, block in enumerate(blocks) for item in block.split())
    for length in [strip + 1, strip + 31, strip + 32, 3 * strip - 5, 10 * strip + 17]:
        columns = []
        for cut in tiles(network, length, strip):
            end = min(cut.start + strip, length)
            assert cut.start % 32 == 0
            assert 0 <= cut.first < cut.last <= (end - cut.start) // 32 - kernel + 1
            for column in range(cut.first, cut.last):
                left, right = 32 * column - reach, 32 * (column + kernel) + reach
                assert left >= 0 or cut.start == 0
                assert right <= end - cut.start or end == length
            columns += [cut.start // 32 + column for column in range(cut.first, cut.last)]
        assert columns == list(range(length // 32 - kernel + 1))
