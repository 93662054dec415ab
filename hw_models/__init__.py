"""The cost simulator: what a bit allocation costs on a chip, from layer shapes and one file per chip."""
