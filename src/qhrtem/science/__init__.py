"""Physics read from a digital twin: each number with an error bar from the joint covariance of the fit."""
