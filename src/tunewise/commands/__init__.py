"""The commands, a file for each kind of job; `tunewise.cli` names them."""
