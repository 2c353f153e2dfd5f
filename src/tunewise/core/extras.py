"""Names what to install where an optional package is missing: each belongs to one of tunewise's extras."""

from __future__ import annotations

import importlib.util

from tunewise.core.errors import SettingError

# The extra and the name on the package index, by the name that is imported.
OPTIONAL = {
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "datasets": ("data", "datasets"),
    "pyarrow": ("data", "datasets"),
    "openpyxl": ("excel", "openpyxl"),
    "gguf": ("gguf", "gguf"),
    "openai": ("judge", "openai"),
    "lm_eval": ("lm-eval", "lm-eval"),
    "mcp": ("mcp", "mcp"),
    "onnx": ("onnx", "onnx"),
    "onnxruntime": ("onnx", "onnxruntime"),
    "onnxscript": ("onnx", "onnxscript"),
    "matplotlib": ("plots", "matplotlib"),
    "bs4": ("rag", "beautifulsoup4"),
    "pypdf": ("rag", "pypdf"),
    "qdrant_client": ("rag", "qdrant-client"),
    "qdrant_edge": ("rag", "qdrant-edge-py"),
    "sentence_transformers": ("rag", "sentence-transformers"),
    "ray": ("ray", "ray"),
    "fastapi": ("serve", "fastapi"),
    "prometheus_client": ("serve", "prometheus-client"),
    "pydantic": ("serve", "pydantic"),
    "uvicorn": ("serve", "uvicorn"),
    "httpx": ("studio", "httpx"),
    "nicegui": ("studio", "nicegui"),
}


def installed(package: str) -> bool:
    """Return whether a package can be imported; it is not imported."""
    return importlib.util.find_spec(package) is not None


def install_command(package: str) -> str:
    """Return the command that installs the extra of a package."""
    return f"pip install 'tunewise[{OPTIONAL[package][0]}]'"


def require(purpose: str, *packages: str) -> None:
    """Refuse what needs an optional package that is missing.

    Args:
        purpose: what needs them, as the subject of the sentence: "PDF files".
        packages: the names that are imported, all of one extra.

    Raises:
        SettingError: says what is missing and how to install it.
    """
    missing = [OPTIONAL[package][1] for package in packages if not installed(package)]
    if missing:
        verb = "need" if purpose.endswith("s") else "needs"
        raise SettingError(
            f"{purpose} {verb} {' and '.join(missing)}, not installed here: {install_command(packages[0])}"
        )
