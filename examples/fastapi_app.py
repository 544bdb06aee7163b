"""A FastAPI application that calls DeepSeek: what its callers see when all is well, and when DeepSeek is overloaded."""

from __future__ import annotations

import asyncio

import httpx
from fastapi import FastAPI

from deepseek_resilient import AsyncDeepSeek
from deepseek_resilient.lab import LabProcess
from deepseek_resilient.middleware.asgi import ResilienceMiddleware


def application(client: AsyncDeepSeek) -> FastAPI:
    """One view. `uvicorn` would serve what this returns."""
    app = FastAPI()
    app.add_middleware(ResilienceMiddleware, engine=client.engine, deadline=10.0, tenant="shop")

    @app.get("/haiku")
    async def haiku(about: str) -> str:
        reply = await client.chat.completions.create(
            model="deepseek-flash", messages=[{"role": "user", "content": f"A haiku about {about}"}]
        )
        return reply.choices[0].message.content or ""

    return app


async def main() -> None:
    """Three requests: one is answered, one is throttled, and one has a caller in a hurry."""
    with LabProcess() as lab:
        async with AsyncDeepSeek(api_key="sk-simulated", base_url=lab.base_url) as client:
            inside = httpx.ASGITransport(application(client))
            async with httpx.AsyncClient(transport=inside, base_url="http://shop") as caller:
                answer = await caller.get("/haiku?about=rain")
                print("all is well:", answer.status_code, answer.json())
                lab.script(next=["throttle_429;retry_after=60"])
                answer = await caller.get("/haiku?about=snow")
                print("throttled:  ", answer.status_code, "try again in", answer.headers["retry-after"], "s")
        async with AsyncDeepSeek(api_key="sk-simulated", base_url=lab.base_url) as client:
            inside = httpx.ASGITransport(application(client))
            async with httpx.AsyncClient(transport=inside, base_url="http://shop") as caller:
                lab.script(next=["hang"])
                answer = await caller.get("/haiku?about=ice", headers={"x-resilient-deadline": "0.3"})
                print("in a hurry: ", answer.status_code, answer.json()["error"]["message"])


if __name__ == "__main__":
    asyncio.run(main())
