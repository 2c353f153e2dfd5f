"""The formats, one file each; every file here that defines FORMAT is a format."""
