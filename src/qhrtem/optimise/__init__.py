"""Optimisers that know vectors, bounds and rules, and nothing of microscopy.

`search.TrustRegionSearch` chooses points where evaluations are worth choosing; `least_squares` finishes where
derivatives are at hand. `protocol.Optimiser` is the conversation that every optimiser here speaks.
"""
