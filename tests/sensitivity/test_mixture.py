"""A mixture read for sensitivities is the one the scorer scores."""

import numpy as np
import pytest
import soundfile as sf
import torch

from hwsearch.data.dataset import Mixture, Talker
from hwsearch.errors import UserError
from hwsearch.files.reading import file_digest
from hwsearch.sensitivity.mixture import read_mixture, separation_loss
from tests.sensitivity.small import small_base, small_mixture
from tests.separator.small import RELU, activation_sites

SAMPLES = 1000


def written(folder, sound, target) -> Mixture:
    sf.write(folder / "mixture.wav", sound.T, 8000, subtype="FLOAT")
    sf.write(folder / "target.wav", target, 8000, subtype="FLOAT")
    talker = Talker("u", "s", None, (1.0, 1.0, 1.0), 60.0, 0, SAMPLES, True)
    return Mixture(
        id="validation-00000",
        sample_rate=8000,
        samples=SAMPLES,
        array="linear4",
        microphones=4,
        room=0,
        room_size_m=(4.0, 4.0, 2.5),
        array_centre_m=(2.0, 2.0, 1.0),
        t60_s=0.1,
        t60_measured_s=0.1,
        target=talker,
        interferer=talker,
        angle_deg=30.0,
        overlap_drawn=1.0,
        overlap=1.0,
        sir_db=0.0,
        noise_snr_db=None,
        target_kind="reverberant",
        made_from="0" * 64,
        mixture_path="mixture.wav",
        mixture_sha256=file_digest(folder / "mixture.wav"),
        target_path="target.wav",
        target_sha256=file_digest(folder / "target.wav"),
    )


def test_a_mixture_is_read_and_passed_through_the_network_once(tmp_path):
    rng = np.random.default_rng(0)
    sound, target = rng.normal(size=(4, SAMPLES)).astype(np.float32), rng.normal(size=SAMPLES).astype(np.float32)
    base = small_base()
    found = read_mixture(base, tmp_path, written(tmp_path, sound, target))
    assert found.name == "validation-00000"
    assert torch.equal(found.target, torch.from_numpy(target)[None])
    assert tuple(found.tensors) == activation_sites(RELU)
    with torch.no_grad():
        whole = base.separator(torch.from_numpy(sound)[None], torch.tensor([60.0]))
        estimate = base.separator.synthesise(found.analysis, found.output, SAMPLES)
    torch.testing.assert_close(estimate, whole, rtol=1e-4, atol=1e-5)


def test_a_changed_file_is_refused(tmp_path):
    sound = np.ones((4, SAMPLES), dtype=np.float32)
    mixture = written(tmp_path, sound, sound[0])
    sf.write(tmp_path / "target.wav", sound[0] * 0.5, 8000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"target\.wav: changed since it was written"):
        read_mixture(small_base(), tmp_path, mixture)


def test_the_loss_is_negative_si_snr():
    """By its definition, in numpy."""
    base = small_base()
    mixture = small_mixture(base)
    found = float(separation_loss(base.separator, mixture.output, mixture))
    with torch.no_grad():
        estimate = base.separator.synthesise(mixture.analysis, mixture.output, SAMPLES)[0].double().numpy()
    target = mixture.target[0].double().numpy()
    estimate, target = estimate - estimate.mean(), target - target.mean()
    projection = (estimate @ target) / (target @ target) * target
    wanted = 10 * np.log10((projection @ projection) / np.sum((estimate - projection) ** 2))
    assert found == pytest.approx(-wanted, abs=1e-3)
