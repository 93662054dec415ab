"""The differentiable search: one network whose every site is a weighted choice among its widths, trained by gradient."""
