"""Dataflow accelerators on FPGAs: every layer is a circuit of its own, and bit-widths determine logic and memory, not cycles."""
