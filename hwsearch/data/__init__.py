"""Speech in, mixtures out: corpora, rooms, mixing, manifests."""
