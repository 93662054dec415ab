"""Which of the processor's kernels the passes run in.

PyTorch takes a convolution of one tap on one thread to MKL, as it does any product of matrices. MKL runs AVX-512 code on Intel
processors only; on others oneDNN is twice as fast, and PyTorch takes dilated convolutions there. For a single tap the dilation
changes nothing but that. Sums are rounded in another order: 1e-6 of the output.
"""

from dataclasses import replace

from hwsearch.separator.folding import FoldedNetwork


def through_onednn(network: FoldedNetwork) -> FoldedNetwork:
    """The same network, whose layers of one tap PyTorch computes by oneDNN, forward and backward."""
    layers = {
        name: replace(layer, dilation=2) if layer.weight.shape[-1] == 1 else layer for name, layer in network.layers.items()
    }
    return replace(network, layers=layers)
