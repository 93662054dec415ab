"""The separator as the cost simulator sees it: layer shapes and sites, no weights."""

from hw_models.workload import Layer, LayerKind, Workload
from hwsearch.experiment import SeparatorConfig
from hwsearch.separator.folding import input_site


def build_workload(config: SeparatorConfig, features: int, frames: int, sample_rate: int, *, per_channel: bool) -> Workload:
    """The workload of one inference.

    Args:
        config: shape of the network.
        features: features per frame.
        frames: frames of the inference.
        sample_rate: Hz, which makes the hop a time.
        per_channel: whether weights have a scale per output channel.
    """
    bins = config.n_fft // 2 + 1
    blocks = config.R * config.X
    layers = [_convolution("input_proj", features, config.B, "blocks.0.input")]
    channels = {"features": features}
    for index in range(blocks):
        name = f"blocks.{index}"
        trunk = f"blocks.{index + 1}.input" if index + 1 < blocks else "mask_input"
        layers += [
            _convolution(f"{name}.expand", config.B, config.H, f"{name}.expand.output"),
            Layer(
                name=f"{name}.depthwise",
                kind=LayerKind.DEPTHWISE,
                in_channels=config.H,
                out_channels=config.H,
                kernel_size=config.P,
                dilation=2 ** (index % config.X),
                weight_site=f"{name}.depthwise.weight",
                input_sites=(f"{name}.expand.output",),
                output_site=f"{name}.depthwise.output",
                bias=True,
            ),
            _convolution(f"{name}.project", config.H, config.B, f"{name}.project.output"),
            Layer(
                name=f"{name}.add",
                kind=LayerKind.ADD,
                in_channels=config.B,
                out_channels=config.B,
                kernel_size=1,
                dilation=1,
                weight_site=None,
                input_sites=(f"{name}.input", f"{name}.project.output"),
                output_site=trunk,
                bias=False,
            ),
        ]
        channels |= {
            f"{name}.input": config.B,
            f"{name}.expand.output": config.H,
            f"{name}.depthwise.output": config.H,
            f"{name}.project.output": config.B,
        }
    layers.append(_convolution("mask_head", config.B, 2 * bins, "masks"))
    channels |= {"mask_input": config.B, "masks": 2 * bins}
    return Workload(
        name=f"tcn-B{config.B}-H{config.H}-P{config.P}-X{config.X}-R{config.R}",
        layers=tuple(layers),
        frames=frames,
        frame_seconds=config.hop_length / sample_rate,
        per_channel_scales=per_channel,
        site_channels=channels,
        causal=config.causal,
    )


def _convolution(name: str, in_channels: int, out_channels: int, output_site: str) -> Layer:
    """A pointwise convolution with bias (the norm's, once folded)."""
    return Layer(
        name=name,
        kind=LayerKind.CONV,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=1,
        dilation=1,
        weight_site=f"{name}.weight",
        input_sites=(input_site(name),),
        output_site=output_site,
        bias=True,
    )
