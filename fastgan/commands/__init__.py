"""The commands of `fastgan`, a file each; cli.py names them."""
