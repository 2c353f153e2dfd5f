"""The formats, one file each; a file is found by being here and defines FORMAT."""
