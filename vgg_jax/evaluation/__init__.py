"""How well a net does: so far the centre crop that drives the plateau schedule."""
