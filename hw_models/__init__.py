"""The cost simulator: costs of a bit allocation on a chip, from the shapes of layers and a target file."""
