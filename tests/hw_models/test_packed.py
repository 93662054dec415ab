import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw_models.errors import TargetError
from hw_models.packed import FILE_HEADER_BYTES, RECORD_BYTES, average_weight_bits, packed_size_bytes
from hw_models.workload import WIDTHS, LayerKind
from tests.hw_models.networks import one_layer, tcn, workloads


def count_bytes(network, widths):
    """Writes the file bit by bit, as a list of ones, and counts."""
    file = [1] * (8 * FILE_HEADER_BYTES)
    written = [x.output_site for x in network.layers]
    for site in {site for x in network.layers for site in x.input_sites if site not in written}:
        file += [1] * (2 * 32 * network.site_channels[site])
    for x in network.layers:
        if x.weight_site is None:
            continue
        bits = widths[x.weight_site]
        file += [1] * (8 * RECORD_BYTES)
        count = x.out_channels * x.kernel_size * (x.in_channels if x.kind is LayerKind.CONV else 1)
        for place in range(count):
            if bits != 2:
                file += [1] * bits
            elif place % 5 == 0:  # a byte for this weight and the next four
                file += [1] * 8
        file += [0] * (-len(file) % 8)
        if bits != 32:
            file += [1] * (16 * (x.out_channels if network.per_channel_scales else 1))
        if x.bias:
            file += [1] * (32 * x.out_channels)
    file += [1] * (8 * RECORD_BYTES * len(network.activation_sites))
    return len(file) // 8


@given(workloads(), st.data())
def test_packed_size_is_the_count_of_every_bit_in_the_file(network, data):
    bits = [data.draw(st.sampled_from(WIDTHS)) for _ in network.sites]
    counted = count_bytes(network, dict(zip(network.sites, bits, strict=True)))
    assert packed_size_bytes(network, np.array([bits])).tolist() == [counted]


@given(workloads(), st.data())
def test_more_bits_never_shrink_the_model(network, data):
    fewer = [data.draw(st.sampled_from(WIDTHS)) for _ in network.sites]
    more = [data.draw(st.sampled_from([w for w in WIDTHS if w >= bits])) for bits in fewer]
    small, large = packed_size_bytes(network, np.array([fewer, more]))
    assert small <= large


def test_a_layer_of_three_bit_weights_is_rounded_up_to_whole_bytes():
    network = one_layer(LayerKind.DEPTHWISE, 5, 5, kernel_size=3)
    size = packed_size_bytes(network, np.array([[3, 8, 8]]))
    assert size.tolist() == [16 + 5 * 8 + 12 + (15 * 3 + 7) // 8 + 5 * 2 + 5 * 4 + 2 * 12]
    assert size.dtype == np.int64


@pytest.mark.parametrize(("weights", "stream"), [(1, 1), (5, 1), (6, 2), (10, 2), (11, 3)])
def test_five_two_bit_weights_take_a_byte(weights, stream):
    network = one_layer(LayerKind.DEPTHWISE, 1, 1, kernel_size=weights)
    size = packed_size_bytes(network, np.array([[2, 8, 8]]))
    assert size.tolist() == [16 + 8 + 12 + stream + 2 + 4 + 2 * 12]


def test_activation_bits_do_not_change_the_file():
    network = tcn()
    bits = np.full((2, len(network.sites)), 4)
    bits[1, len(network.weight_sites) :] = 8
    first, second = packed_size_bytes(network, bits)
    assert first == second


def test_average_bits_are_weighted_by_the_number_of_weights():
    network = tcn(features=20, bottleneck=12, blocks=1, hidden=24, bins=9)
    bits = np.full((1, len(network.sites)), 4)
    bits[0, 0] = 8  # 240 weights of 240 + 288 + 72 + 288 + 216
    assert average_weight_bits(network, bits)[0] == pytest.approx((240 * 8 + 864 * 4) / 1104)


def test_average_bits_of_the_tcn_alone_leave_out_the_other_layers():
    network = tcn(blocks=1, bottleneck=12, hidden=24)
    bits = np.full((1, len(network.sites)), 8)
    bits[0, network.column["blocks.0.depthwise.weight"]] = 2
    chosen = [site for site in network.weight_sites if site.startswith("blocks.")]
    assert average_weight_bits(network, bits, chosen)[0] == pytest.approx((576 * 8 + 72 * 2) / 648)


def test_an_unknown_site_in_an_average_is_refused():
    network = tcn()
    bits = np.full((1, len(network.sites)), 8)
    with pytest.raises(TargetError, match="unknown weight site 'features'"):
        average_weight_bits(network, bits, ["features"])
    with pytest.raises(TargetError, match="wanted at least one"):
        average_weight_bits(network, bits, [])
