"""Gymnasium environments; made through ``gymnasium.make`` once the package is imported."""
