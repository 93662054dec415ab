from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hwsearch.data.arrays import ARRAYS
from hwsearch.errors import UserError
from hwsearch.experiment import SeparatorConfig
from hwsearch.separator.base import EMBEDDED_BASE, BaseDescription, load_base, save_base
from hwsearch.separator.separator import Separator, build_separator

REAL_SPEECH = Path(__file__).parents[2] / "experiments" / "bases" / "real_speech.safetensors"

CONFIG = SeparatorConfig(n_fft=128, hop_length=64, B=8, H=12, X=2, R=1)


def small_base(path: Path, config: SeparatorConfig = CONFIG) -> Separator:
    torch.manual_seed(0)
    separator = build_separator(CONFIG, ARRAYS["linear4"], 8000).eval()
    save_base(path, separator, BaseDescription(sample_rate=8000, array="linear4", separator=config, made_by={"seed": "0"}))
    return separator


def test_what_is_saved_separates_alike(tmp_path: Path) -> None:
    separator = small_base(tmp_path / "base.safetensors")
    loaded, description = load_base(tmp_path / "base.safetensors")
    mixture, doa = torch.randn(2, 4, 2000), torch.tensor([30.0, 120.0])
    assert torch.equal(separator(mixture, doa), loaded(mixture, doa))
    assert description.made_by == {"seed": "0"}
    assert not loaded.training


def test_equal_bases_are_equal_files(tmp_path: Path) -> None:
    for name in ("one", "other"):
        small_base(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def flipped(path: Path) -> None:
    """Flip a bit of a tensor."""
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("shipped", [EMBEDDED_BASE, REAL_SPEECH])
def test_a_base_that_ships_is_taken_and_refused_with_one_bit_flipped(tmp_path: Path, shipped: Path) -> None:
    load_base(shipped)
    path = tmp_path / "base.safetensors"
    path.write_bytes(shipped.read_bytes())
    flipped(path)
    with pytest.raises(UserError, match=r"base\.safetensors: not a base .* \(it carries no digest of its content\)"):
        load_base(path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flipped, r"not a base made by 'hwsearch train' \(it changed since it was written"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not a base made by 'hwsearch train'"),
        (lambda path: small_base(path, CONFIG.model_copy(update={"H": 16})), r"tensor '.+' is torch.float32 \[.+\]; wanted"),
        (lambda path: save_file({"x": torch.zeros(2)}, path), "not a base made by 'hwsearch train'"),
        (lambda path: path.unlink(), "no such file"),
    ],
)
def test_a_file_that_is_no_base_is_refused(tmp_path: Path, damage: Callable[[Path], object], reason: str) -> None:
    path = tmp_path / "base.safetensors"
    small_base(path)
    damage(path)
    with pytest.raises(UserError, match=rf"base\.safetensors: {reason}"):
        load_base(path)
