import pytest

from hw_models.sections import Dilation
from hw_models.shape import executed_shape
from hw_models.workload import LayerKind
from tests.hw_models.networks import layer


def depthwise(dilation, kernel_size=3):
    return layer(LayerKind.DEPTHWISE, "a", "x", "y", 16, 16, kernel_size, dilation)


@pytest.mark.parametrize(
    ("dilation", "taps"),
    [(1, 3), (2, 3), (4, 5), (8, 9), (64, 65), (128, 129), (3, 7), (5, 11)],  # (K-1) d / 2 + 1; odd d whole
)
def test_expanding_leaves_the_hardware_a_factor_of_two(dilation, taps):
    shape = executed_shape(depthwise(dilation), 100, Dilation(mode="expand", native_factor=2, source="s"))
    assert (shape.taps, shape.frames) == (taps, 100)
    assert shape.inserted_zeros == (taps - 3) * 16
    assert shape.macs == taps * 16 * 100


@pytest.mark.parametrize(("dilation", "frames"), [(1, 100), (3, 102), (64, 128), (128, 128)])
def test_folding_time_pads_the_frames_to_whole_rows(dilation, frames):
    shape = executed_shape(depthwise(dilation), 100, Dilation(mode="fold_time", source="s"))
    assert (shape.taps, shape.frames, shape.inserted_zeros) == (3, frames, 0)


@pytest.mark.parametrize("mode", ["native", "expand", "fold_time"])
def test_a_pointwise_layer_has_nothing_to_dilate(mode):
    shape = executed_shape(depthwise(64, kernel_size=1), 100, Dilation(mode=mode, source="s"))
    assert (shape.taps, shape.frames, shape.inserted_zeros) == (1, 100, 0)
