"""The network of an experiment: a built-in one, or a module of the user's own.

The experiment names a function that makes the module. It is called with the channels of input and output (see `front_end`) and
with the `arguments` of the experiment. The module takes [batch, inputs, frames] and returns [batch, outputs, frames]. The user's
code is only imported if an experiment names it.
"""

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from hwsearch.errors import UserError
from hwsearch.executor.portable import moved
from hwsearch.experiment import ConvTasNetConfig, Experiment, ModuleConfig, NetworkConfig, SeparatorConfig
from hwsearch.files.reading import digest
from hwsearch.separator.conv_tasnet import ConvTasNet
from hwsearch.separator.front_end import FrontEnd
from hwsearch.separator.tcn import MaskNetwork


def build_network(config: NetworkConfig, front_end: FrontEnd) -> nn.Module:
    """Make an untrained network, in training mode.

    Raises:
        UserError: a module of the user's own cannot be imported or built.
    """
    match config:
        case SeparatorConfig():
            return MaskNetwork(config, front_end.inputs)
        case ConvTasNetConfig():
            return ConvTasNet(config, front_end.outputs)
        case ModuleConfig():
            return _own_network(config, front_end)


def code_files(config: NetworkConfig) -> tuple[Path, ...]:
    """Return the file of a module of the user's own; none for a built-in network or a module of a package."""
    where = config.module.rpartition(":")[0] if isinstance(config, ModuleConfig) else ""
    return (Path(where),) if _is_file(where) else ()


def with_code_below(experiment: Experiment, root: Path) -> Experiment:
    """Move the file of a user's own module below another root; see `executor.portable`."""
    config = experiment.separator
    files = code_files(config)
    if not isinstance(config, ModuleConfig) or not files:
        return experiment
    module = f"{moved(files[0], root)}:{config.module.rpartition(':')[2]}"
    return experiment.model_copy(update={"separator": config.model_copy(update={"module": module})})


def _is_file(where: str) -> bool:
    return where.endswith(".py")


def _own_network(config: ModuleConfig, front_end: FrontEnd) -> nn.Module:
    place = f"separator.module '{config.module}'"
    build = _function(config.module, place)
    try:
        network = build(front_end.inputs, front_end.outputs, **config.arguments)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{place}: {_said(error)}; called with {front_end.inputs} inputs and {front_end.outputs} outputs"
        ) from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{place}: gives a {type(network).__name__}; wanted a torch.nn.Module")
    return network


def _function(name: str, place: str) -> Callable[..., Any]:
    where, _, function = name.rpartition(":")
    try:
        module = _from_file(Path(where)) if _is_file(where) else importlib.import_module(where)
    except (Exception, SystemExit) as error:
        raise UserError(f"{place}: cannot be imported ({_said(error)})") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(f"{place}: '{where}' has no function '{function}'")
    made: Callable[..., Any] = found
    return made


def _from_file(path: Path) -> ModuleType:
    """Import a file once per process."""
    name = f"hwsearch_own_{digest(os.path.realpath(path))[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _said(error: BaseException) -> str:
    """Return type, message and line of an error in the user's code."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    line = f" at line {frames[-1].lineno} of {Path(frames[-1].filename).name}" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}{line}"
