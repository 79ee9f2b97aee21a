"""Shared set-up: these machines are noisy, so no property test may fail for being slow."""

from hypothesis import settings

settings.register_profile("noisy", deadline=None)
settings.load_profile("noisy")
