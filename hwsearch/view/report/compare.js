// The comparison of several runs: their fronts in one figure.

startFront(() => {});
