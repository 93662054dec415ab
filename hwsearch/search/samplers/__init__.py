"""Samplers: they propose candidates once the seeds are used up."""
