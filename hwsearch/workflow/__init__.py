"""The steps of the main job as plain functions: they return values, print nothing, and tell a listener how they get on."""
