"""The paper's nets as one plan: its stages, running them, and the tables they fill."""
