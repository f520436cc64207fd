"""How well a model does: the centre crop that drives the plateau schedule, and the paper's test protocol."""
