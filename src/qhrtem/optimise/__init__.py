"""Optimisers that know vectors, bounds and rules, and nothing of microscopy.

`search.TrustRegionSearch` chooses points where evaluations are worth choosing, `least_squares` finishes where
derivatives are at hand, and `hybrid.HybridSearch` lets the two compete. `methods.make` builds these and every
baseline by name; `protocol.Optimiser` is the conversation that all of them speak.
"""
