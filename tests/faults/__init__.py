"""The fault suite: a run is stopped in every way there is, and must come to the same result all the same."""
