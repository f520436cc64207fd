"""The paper's models as one plan: its stages, running them, and the tables they fill."""
