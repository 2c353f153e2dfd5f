"""The commands, a file for each kind of job; `tunewise.cli.main` names them."""
