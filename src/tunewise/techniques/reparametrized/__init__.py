"""The reparametrized family."""
