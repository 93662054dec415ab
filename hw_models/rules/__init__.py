"""Compute rules: each module computes cycles from a layer's shape and bit-widths."""
