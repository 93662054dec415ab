"""Optuna studies of a search, which the record fills: the mirror in the run folder, and shared ones on a server."""
