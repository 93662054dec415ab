"""Small networks for the tests: the separator's TCN, and random graphs."""

from hypothesis import strategies as st

from hw_models.target import built_in_targets, load_target
from hw_models.workload import WIDTHS, Layer, LayerKind, Workload

TARGETS = {name: load_target(name) for name in built_in_targets()}


def runnable_widths(target):
    """Widths that a target runs in weights and activations alike, in any combination."""

    def runs(bits):
        wider = [(a, w) for a, w in target.precisions.pairs if a >= bits and w >= bits]
        return wider if target.precisions.unsupported == "widen" else (bits, bits) in target.precisions.pairs

    return tuple(bits for bits in WIDTHS if runs(bits))


RUNNABLE_WIDTHS = {name: runnable_widths(target) for name, target in TARGETS.items()}


def overhead_cycles(target, network):
    """Cycles that belong to no layer."""
    written = {layer.output_site for layer in network.layers}
    inputs = sum(count * network.site_positions[site] for site, count in network.site_channels.items() if site not in written)
    return target.overheads.inference_cycles + target.overheads.cycles_per_input * inputs


def layer(kind, name, source, target, channels_in, channels_out, kernel_size=1, dilation=1, *, bias=True):
    sources = source if isinstance(source, tuple) else (source,)
    weight = None if kind is LayerKind.ADD else f"{name}.weight"
    return Layer(
        name,
        kind,
        channels_in,
        channels_out,
        kernel_size,
        dilation,
        weight,
        sources,
        target,
        bias and weight is not None,
    )


def tcn(features=20, bottleneck=12, hidden=24, blocks=4, bins=9, frames=50, *, per_channel_scales=True):
    """Projection, `blocks` residual blocks with dilations 1, 2, 4 ..., mask head."""
    sites = {"features": features, "blocks.0.input": bottleneck}
    layers = [layer(LayerKind.CONV, "input_proj", "features", "blocks.0.input", features, bottleneck)]
    for i in range(blocks):
        name, following = f"blocks.{i}", f"blocks.{i + 1}.input" if i + 1 < blocks else "mask_input"
        sites |= {f"{name}.expand.output": hidden, f"{name}.depthwise.output": hidden}
        sites |= {f"{name}.project.output": bottleneck, following: bottleneck}
        expanded, filtered, projected = list(sites)[-4:-1]
        block_input = f"{name}.input"
        layers += [
            layer(LayerKind.CONV, f"{name}.expand", block_input, expanded, bottleneck, hidden),
            layer(LayerKind.DEPTHWISE, f"{name}.depthwise", expanded, filtered, hidden, hidden, 3, 2**i),
            layer(LayerKind.CONV, f"{name}.project", filtered, projected, hidden, bottleneck),
            layer(LayerKind.ADD, f"{name}.add", (block_input, projected), following, bottleneck, bottleneck),
        ]
    sites["masks"] = 2 * bins
    layers.append(layer(LayerKind.CONV, "masks_head", "mask_input", "masks", bottleneck, 2 * bins))
    return Workload("tcn", tuple(layers), frames, 0.016, per_channel_scales, sites)


def one_layer(kind, channels_in, channels_out, kernel_size=1, dilation=1, frames=50):
    names = ("x", "z") if kind is LayerKind.ADD else ("x",)
    only = layer(kind, "only", names, "y", channels_in, channels_out, kernel_size, dilation)
    sites = {**dict.fromkeys(names, channels_in), "y": channels_out}
    return Workload("one", (only,), frames, 0.016, per_channel_scales=True, site_channels=sites)


@st.composite
def workloads(draw):
    """Random graphs: skips, tensors read twice, several outputs; three weights or more per output."""
    sites = {"features": draw(st.integers(3, 20))}
    layers = []
    for i in range(draw(st.integers(1, 7))):
        kind = draw(st.sampled_from((LayerKind.CONV, LayerKind.DEPTHWISE, LayerKind.ADD)))  # those that every target runs
        source = draw(st.sampled_from(sorted(sites)))
        channels = sites[source]
        out = draw(st.integers(3, 20)) if kind is LayerKind.CONV else channels
        kernel = {
            LayerKind.CONV: st.integers(1, 3),
            LayerKind.DEPTHWISE: st.integers(3, 5),
            LayerKind.ADD: st.just(1),
        }
        inputs = source
        if kind is LayerKind.ADD:
            inputs = (
                source,
                draw(st.sampled_from([site for site in sorted(sites) if sites[site] == channels])),
            )
        layers.append(
            layer(
                kind,
                f"layer{i}",
                inputs,
                f"site{i}",
                channels,
                out,
                draw(kernel[kind]),
                draw(st.sampled_from([1, 2, 3, 8])),
                bias=draw(st.booleans()),
            )
        )
        sites[f"site{i}"] = out
    used = {site for x in layers for site in (*x.input_sites, x.output_site)}
    kept = {site: channels for site, channels in sites.items() if site in used}
    return Workload("random", tuple(layers), draw(st.integers(1, 30)), 0.01, draw(st.booleans()), kept)
