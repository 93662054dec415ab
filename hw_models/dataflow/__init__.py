"""Dataflow accelerators on FPGAs: every layer is a circuit of its own, and bits buy logic and memory instead of cycles."""
