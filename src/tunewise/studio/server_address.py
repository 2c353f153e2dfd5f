"""Where a `tunewise serve` that this page has started listens, and which models it has."""

from __future__ import annotations

import re

from tunewise.studio.jobs import Job

_SERVING = re.compile(r"serving .* at (http://127\.0\.0\.1:\d+/v1)$")


def address_of(job: Job) -> str | None:
    """Return the address that a running server has printed; None while it loads."""
    if not job.is_running:
        return None
    found = [match[1] for line in job.messages if (match := _SERVING.fullmatch(line))]
    return found[-1] if found else None


async def models_of(address: str, headers: dict[str, str]) -> list[str]:
    """Ask a server for its models."""
    import httpx

    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        response = await client.get(f"{address}/models", headers=headers)
        response.raise_for_status()
        return [str(each["id"]) for each in response.json()["data"]]
