"""What a technique will need: parameters, memory and time."""
