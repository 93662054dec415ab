"""What people see: tables, bars, plots. It renders values that the workflow returns and computes none."""
