"""The user's files and Hub sets as a `Task`, and the shipped world."""
