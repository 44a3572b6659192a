"""Phantoms of many crystals by another simulator, fitted without knowledge of their answers."""
