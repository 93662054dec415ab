"""Libraries send nothing home about this machine or what runs on it."""

import os


def switch_off_telemetry() -> None:
    """Switch off what libraries report; they read these variables as they are loaded, and processes started later inherit them.

    ONNX Runtime would else write a device id below the home folder and look its collector up; Ray would report its usage.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
