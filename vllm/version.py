"""The version. Major and minor follow the version of vLLM whose surface this is."""

__version__ = "0.33.0"
__version_tuple__ = (0, 33, 0)
