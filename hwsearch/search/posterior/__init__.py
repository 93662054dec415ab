"""The sampler that starts from prior sensitivities, corrects them by every scored candidate, and solves the allocation again."""
