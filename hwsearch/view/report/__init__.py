"""The report of a run and the comparison of runs, each as one HTML file that opens offline and requests nothing."""
