"""A network as a value: the graph, how it is traced from a module, and what reads it. Nothing here knows an architecture."""
