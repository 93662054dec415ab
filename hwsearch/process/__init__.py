"""This process and its machine: signals, cores, devices, and what libraries report."""
