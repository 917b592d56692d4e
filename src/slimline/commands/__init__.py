"""One file per command, each with a click command called ``command``; the file's name is the command's. `cli.py` finds them."""
