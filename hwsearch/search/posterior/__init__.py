"""The engine that corrects prior sensitivities by every scored candidate, and solves the allocation problem again."""
