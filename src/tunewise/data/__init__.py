"""Turns the user's files and Hub data sets into a `Task`, and holds the shipped world."""
