"""Exact allocations for separable sensitivities: the whole front against one cost, and the optimum under several limits."""
