"""What the archive's graph model knows before it sees a file."""

from slimline.archive.tokens import Tokens


def prior() -> Tokens:
    return Tokens()
