"""Carries out plans: inputs, forward pass, sampling."""
