"""A benchmark of optimisers on problems of quantitative HRTEM whose truth another simulator computed."""
