"""Mixed-precision search for speech separators."""

from hwsearch.telemetry import switch_off_telemetry

__version__ = "0.1.0"

switch_off_telemetry()
