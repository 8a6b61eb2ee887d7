"""What to run to have an extra: the package is on no index, so a checkout or a wheel is where it comes from."""


def how_to_install(extra: str) -> str:
    """Return the command that brings an extra, as messages end with it."""
    return (
        f"python -m pip install -e '.[{extra}]' in a checkout, or 'WHEEL[{extra}]' with a wheel's file name"
    )
