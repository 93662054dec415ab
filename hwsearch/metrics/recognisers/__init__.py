"""Speech recognisers that turn separated audio into words, so that word errors measure the separation."""
