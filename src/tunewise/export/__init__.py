"""Write adaptations in formats that other programs read, and check that these read the model that was trained."""
