"""The separator as the cost simulator sees it: layer shapes and sites, no weights."""

from hw_models.workload import Layer, LayerKind, Workload
from hwsearch.experiment import SeparatorConfig
from hwsearch.separator.folding import trunk_site


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
    layers = [_convolution("input_proj", "features", features, config.B, "input_proj.output")]
    channels = {"features": features, "input_proj.output": config.B}
    for index in range(blocks):
        name = f"blocks.{index}"
        layers += [
            _convolution(f"{name}.expand", trunk_site(index), config.B, config.H, f"{name}.expand.output"),
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
            _convolution(f"{name}.project", f"{name}.depthwise.output", config.H, config.B, f"{name}.project.output"),
            Layer(
                name=f"{name}.add",
                kind=LayerKind.ADD,
                in_channels=config.B,
                out_channels=config.B,
                kernel_size=1,
                dilation=1,
                weight_site=None,
                input_sites=(trunk_site(index), f"{name}.project.output"),
                output_site=f"{name}.add.output",
                bias=False,
            ),
        ]
        channels |= {
            f"{name}.expand.output": config.H,
            f"{name}.depthwise.output": config.H,
            f"{name}.project.output": config.B,
            f"{name}.add.output": config.B,
        }
    layers.append(_convolution("mask_head", trunk_site(blocks), config.B, 2 * bins, "mask_head.output"))
    channels["mask_head.output"] = 2 * bins
    return Workload(
        name=f"tcn-B{config.B}-H{config.H}-P{config.P}-X{config.X}-R{config.R}",
        layers=tuple(layers),
        frames=frames,
        frame_seconds=config.hop_length / sample_rate,
        per_channel_scales=per_channel,
        site_channels=channels,
        causal=config.causal,
    )


def _convolution(name: str, input_site: str, in_channels: int, out_channels: int, output_site: str) -> Layer:
    """A pointwise convolution with bias (the norm's, once folded)."""
    return Layer(
        name=name,
        kind=LayerKind.CONV,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=1,
        dilation=1,
        weight_site=f"{name}.weight",
        input_sites=(input_site,),
        output_site=output_site,
        bias=True,
    )
