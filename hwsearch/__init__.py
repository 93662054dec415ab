"""Mixed-precision search for speech separators."""

__version__ = "0.1.0"
