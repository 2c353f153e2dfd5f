"""The nonparametric family."""
