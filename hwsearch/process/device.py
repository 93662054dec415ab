"""The device that networks are computed on: the processor, or a GPU that PyTorch reaches through CUDA."""

import torch

from hwsearch.errors import UserError
from hwsearch.experiment import Device


def is_there(device: Device) -> bool:
    """Whether this process can compute on a device."""
    return device == "cpu" or torch.cuda.is_available()


def check_device(device: Device) -> None:
    """Refuse a device that this process does not see.

    Raises:
        UserError: as said.
    """
    if not is_there(device):
        raise UserError("workers.device is 'cuda'; PyTorch finds no CUDA device on this machine: wanted one, or 'cpu'")


def open_device(device: Device) -> torch.device:
    """A device, set up so that its results differ from the processor's by rounding only; of several GPUs the first.

    By default PyTorch shortens the factors of convolutions on a GPU to the 11 significant bits of TF32, and may take kernels that
    sum in another order each time.

    Raises:
        UserError: this process does not see the device.
    """
    check_device(device)
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        return torch.device("cuda", 0)
    return torch.device("cpu")
