"""The old name that Accelerate still imports."""


def check_mxfp8_support() -> tuple[bool, str]:
    return True, ""
