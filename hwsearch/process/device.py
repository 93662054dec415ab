"""The device that computes networks: the processor, or a GPU that PyTorch reaches through CUDA."""

import torch

from hwsearch.errors import UserError
from hwsearch.experiment import Device


def is_there(device: Device) -> bool:
    """Return whether this process can compute on a device."""
    return device == "cpu" or torch.cuda.is_available()


def check_device(device: Device) -> None:
    """Raise `UserError` if this process cannot compute on a device."""
    if not is_there(device):
        raise UserError("workers.device is 'cuda'; PyTorch finds no CUDA device on this machine: wanted one, or 'cpu'")


def open_device(device: Device) -> torch.device:
    """Open a device so that its results differ from the processor's by rounding only. Of several GPUs it is the first.

    Raises:
        UserError: this process cannot compute on the device.
    """
    check_device(device)
    if device == "cuda":
        # By default PyTorch rounds the factors of convolutions to TF32, and takes kernels whose order of summation varies.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        return torch.device("cuda", 0)
    return torch.device("cpu")
