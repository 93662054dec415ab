"""A network of one's own, and the experiments that name it."""
